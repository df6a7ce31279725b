"""The command line: its commands, and what becomes of errors."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import click

from seed_edge import __version__
from seed_edge.commands import bundles, chatting, drawing, keeping, seeing, shell, training
from seed_edge.commands.common import choose
from seed_edge.commands.settings import LEVELS, defaults_in, log_to_stderr
from seed_edge.commands.shell import EXIT_CODES
from seed_edge.errors import SeedEdgeError
from seed_edge.home import CONFIG, folder

INTERRUPTED = 130

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
}
"""What the system, not the program, is at fault for: a full disk, permissions, a path that is not there."""


class Commands(click.Group):
    """Turns errors a user can put right into one line and exit code 1; anything else is a bug, with its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except SeedEdgeError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno in SYSTEM_FAULTS:
                raise click.ClickException(f"{error.filename or 'a file'}: {error.strerror}") from error
            raise


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
    if log_json or log_level != "warning":
        log_to_stderr(log_level, log_json)
    path = config or folder("config") / CONFIG
    if config is not None or path.is_file():
        assert isinstance(context.command, click.Group)
        context.default_map = defaults_in(path, context.command)


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
