"""The command line: its commands, and what becomes of errors."""

from __future__ import annotations

import errno
from typing import Any

import click

from seed_edge import __version__
from seed_edge.commands import bundles, drawing, keeping, seeing, training
from seed_edge.errors import SeedEdgeError

SYSTEM_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
"""What the system, not the program, is at fault for: a full disk, permissions, a path that is not there."""


class Commands(click.Group):
    """Turns errors a user can put right into one line and exit code 1; anything else is a bug, with its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SeedEdgeError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno in SYSTEM_FAULTS:
                raise click.ClickException(f"{error.filename or 'a file'}: {error.strerror}") from error
            raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="seed-edge")
def cli() -> None:
    """See and draw with one small model, offline.

    Images become codes that a language model reads (caption) and writes (draw).
    """


for command in (
    seeing.caption,
    drawing.draw,
    seeing.encode,
    drawing.decode,
    drawing.edit,
    drawing.reconstruct,
    seeing.ask,
    keeping.bundles,
    keeping.inspect,
    keeping.doctor,
    bundles.export,
    bundles.verify,
    bundles.bench,
    training.train,
    training.tokenize,
    training.evaluate,
):
    cli.add_command(command)
