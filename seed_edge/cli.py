"""The command line: the table of commands, and the handling of errors."""

from __future__ import annotations

import errno
import importlib
import textwrap
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from seed_edge import __version__, native
from seed_edge.commands.config import FILE, LEVELS, json_log, log_to_stderr, read_defaults
from seed_edge.commands.exit_codes import EXIT_CODES, INTERRUPTED
from seed_edge.display import printable
from seed_edge.errors import SeedEdgeError
from seed_edge.user_dirs import CONFIG, folder

COMMANDS = {
    "caption": ("caption", "Caption IMAGES: files, folders, or - for an image from stdin."),
    "draw": ("draw", "Draw an image of PROMPT."),
    "encode": ("caption", "Encode IMAGES to codes, one line for each image."),
    "decode": ("decode", "Decode CODES, the output of `encode`, to an image."),
    "edit": ("edit", 'Edit IMAGE by INSTRUCTION, such as "make the fox blue".'),
    "reconstruct": ("decode", "Encode IMAGE and decode its codes: what the language model sees of it."),
    "ask": ("caption", "Answer QUESTION about one or several IMAGES."),
    "chat": ("chat", "Chat with a model about images; it can draw images, too."),
    "bundles": ("bundles", "Add, list and remove bundles that --bundle finds by name."),
    "inspect": ("bundles", "Print the metadata of a drawn image, a bundle, a GGUF or an ONNX file."),
    "doctor": ("bundles", "Check this machine and the installation."),
    "export": ("export", "Export checkpoints to a bundle, and compare its outputs with PyTorch's."),
    "verify": ("export", "Check a bundle's hashes, and compare its outputs with those recorded at export."),
    "bench": ("export", "Time every stage, and compare with the lower bound of this machine."),
    "train": ("train", "Train an image tokenizer and a language model."),
    "tokenize": ("train", "Encode a data set to codes for `train llm`, by a bundle or a training run."),
    "eval": ("train", "Evaluate a bundle on held-out images; prints JSON."),
    "completion": ("shell", "Print the completion script for SHELL: bash, zsh or fish."),
    "manual": ("shell", "Print the manual page: seed-edge manual > seed-edge.1."),
}
"""Command name to its module in `commands` and the first sentence of its help, so that `--help` imports no
command.
"""
MAX_MESSAGE = 2000
"""Maximum length of a printed message in characters."""

SYSTEM_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.EXDEV,
    errno.EBUSY,
    errno.EIO,
    errno.ENXIO,
    errno.ENODEV,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EOPNOTSUPP,
}
"""`errno` of errors that are not bugs: a full disk, missing permissions, a missing path."""


class Commands(click.Group):
    """The group of all commands, each imported when it is first used.

    Errors that a user can correct are printed as one escaped line, with exit code 1; any other error is a bug
    and keeps its traceback.
    """

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """Import and return all commands."""
        return {name: self.load(name) for name in COMMANDS}

    @commands.setter
    def commands(self, commands: MutableMapping[str, click.Command]) -> None:
        if commands:
            raise TypeError("commands are listed in COMMANDS")

    def load(self, name: str) -> click.Command:
        """Import and return one command of `COMMANDS`."""
        module = importlib.import_module(f"seed_edge.commands.{COMMANDS[name][0]}")
        return next(
            value
            for value in vars(module).values()
            if isinstance(value, click.Command) and value.name == name
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return self.load(name) if name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = formatter.width - 6 - max(map(len, COMMANDS))
        rows = [
            (name, textwrap.shorten(text, width, placeholder="...")) for name, (_, text) in COMMANDS.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with readable_errors("--log-json" in kwargs.get("args", args[1] if len(args) > 1 else ())):
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with readable_errors(bool(ctx.params.get("log_json"))):
            return super().invoke(ctx)


class JsonError(click.ClickException):
    """An error that is printed as one line of JSON, like the log messages of --log-json."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = exit_code  # a class variable of click.ClickException

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(json_log("error", self.message, time.time()), file=file, err=file is None)


@contextmanager
def readable_errors(as_json: bool) -> Iterator[None]:
    """Convert errors to exceptions that click prints as one line, with control characters escaped.

    Args:
        as_json: print JSON lines.
    """
    try:
        with _click_errors():
            yield
    except KeyboardInterrupt:
        click.echo(json_log("error", "interrupted", time.time()) if as_json else "interrupted", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except click.ClickException as error:
        message = limited_line(error.format_message() if as_json else error.message)
        if as_json:
            raise JsonError(message, error.exit_code) from error
        vars(error)["message"] = message  # declared final
        raise


@contextmanager
def _click_errors() -> Iterator[None]:
    """Convert errors of the package and of the system to `click.ClickException`, which exits with code 1."""
    try:
        yield
    except SeedEdgeError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        if error.errno in SYSTEM_ERRORS:
            raise click.ClickException(f"{error.filename or 'a file'}: {error.strerror}") from error
        raise


def limited_line(message: str) -> str:
    """Return a message as one line of limited length, with control characters escaped."""
    line = printable(message)
    return line if len(line) <= MAX_MESSAGE else line[:MAX_MESSAGE] + "..."


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=f"Exit codes: {EXIT_CODES}"
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="warning",
    show_default=True,
    help="Lowest level of log messages on stderr.",
)
@click.option("--log-json", is_flag=True, help="Write every line on stderr as JSON.")
@click.option(
    "--config",
    envvar="SEED_EDGE_CONFIG",
    type=click.Path(path_type=Path),
    help=f"File with default values of options.  [default: {CONFIG} in the configuration folder]",
)
@click.version_option(__version__, "-V", "--version", prog_name="seed-edge")
@click.pass_context
def cli(context: click.Context, log_level: str, log_json: bool, config: Path | None) -> None:
    """Caption and draw images with one small model, offline.

    An image is encoded to codes; a language model reads codes (caption) and generates codes (draw).
    """
    log_to_stderr(log_level, log_json)
    path = config or folder("config") / CONFIG
    if config is not None or path.exists():
        assert isinstance(context.command, click.Group)
        context.meta[FILE] = printable(str(path))
        context.default_map = read_defaults(path, context.command)


def main() -> None:
    """Run the console script: set up the process, then run the command."""
    native.configure_cli_process()
    cli()
