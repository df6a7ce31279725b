"""The command line: its commands, and what becomes of errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from seed_edge import __version__, native
from seed_edge.commands import bundles, chatting, drawing, keeping, seeing, shell, training
from seed_edge.commands.common import choose
from seed_edge.commands.settings import FILE, LEVELS, defaults_in, log_to_stderr
from seed_edge.commands.shell import EXIT_CODES
from seed_edge.display import printable
from seed_edge.errors import SeedEdgeError
from seed_edge.home import CONFIG, folder

INTERRUPTED = 130
LONGEST_MESSAGE = 2000
"""Characters of a message that are printed."""

SYSTEM_FAULTS = {
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
"""What the system, not the program, is at fault for: a full disk, permissions, a path that is not there or no path."""


class Commands(click.Group):
    """Turns errors a user can put right into one line and exit code 1; anything else is a bug, with its traceback.

    Every message of an error passes here on its way to stderr, and is escaped here.
    """

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with told():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with told():
            return super().invoke(ctx)


@contextmanager
def told() -> Iterator[None]:
    """Turn errors into those that click shows, with messages a terminal does not obey."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except click.ClickException as error:
        vars(error)["message"] = shown(error.message)  # declared final
        raise
    except SeedEdgeError as error:
        raise click.ClickException(shown(str(error))) from error
    except OSError as error:
        if error.errno in SYSTEM_FAULTS:
            raise click.ClickException(shown(f"{error.filename or 'a file'}: {error.strerror}")) from error
        raise


def shown(message: str) -> str:
    """A message as it is printed: one line, which a terminal does not obey, and which ends at some length."""
    line = printable(message)
    return line if len(line) <= LONGEST_MESSAGE else line[:LONGEST_MESSAGE] + "..."


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=f"Exit codes: {EXIT_CODES}")
@click.option("--log-level", default="warning", show_default=True, help=f"What is told on stderr: {', '.join(LEVELS)}.")
@click.option("--log-json", is_flag=True, help="Tell it as JSON, a line for each message.")
@click.option(
    "--config",
    envvar="SEED_EDGE_CONFIG",
    type=click.Path(path_type=Path),
    help=f"File with defaults for options.  [default: {CONFIG} in the folder for configuration]",
)
@click.version_option(__version__, prog_name="seed-edge")
@click.pass_context
def cli(context: click.Context, log_level: str, log_json: bool, config: Path | None) -> None:
    """See and draw with one small model, offline.

    Images become codes that a language model reads (caption) and writes (draw).
    """
    choose("--log-level", log_level, LEVELS)
    log_to_stderr(log_level, log_json)
    path = config or folder("config") / CONFIG
    if config is not None or path.exists():
        assert isinstance(context.command, click.Group)
        context.meta[FILE] = printable(str(path))
        context.default_map = defaults_in(path, context.command)


def main() -> None:
    """The console script: settings of a process of our own, then the command."""
    native.own_process()
    cli()


for command in (
    seeing.caption,
    drawing.draw,
    seeing.encode,
    drawing.decode,
    drawing.edit,
    drawing.reconstruct,
    seeing.ask,
    chatting.chat,
    keeping.bundles,
    keeping.inspect,
    keeping.doctor,
    bundles.export,
    bundles.verify,
    bundles.bench,
    training.train,
    training.tokenize,
    training.evaluate,
    shell.completion,
    shell.manual,
):
    cli.add_command(command)
