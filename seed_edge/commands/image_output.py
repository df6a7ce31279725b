"""What commands that make pictures share: options of a diffusion, where pictures and what is half done are
kept.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from seed_edge.atomic import is_special, replacing, write_new
from seed_edge.commands.common import MOST_GUIDANCE, SCHEDULERS, Number, option
from seed_edge.errors import SeedEdgeError
from seed_edge.output_checks import is_stdout, refuse_input, refuse_inside, regular_stdin, why

if TYPE_CHECKING:
    from PIL.Image import Image

    from seed_edge.commands.common import RuntimeOptions
    from seed_edge.image_metadata import Record
    from seed_edge.runtime.pipeline import SeedEdge
    from seed_edge.runtime.unclip import DiffusionOptions

log = logging.getLogger("seed_edge")

LATENTS = ".npy"
MAX_SIDE = {"PNG": (1 << 31) - 1, "WEBP": 16_383, "JPEG": 65_500}
"""Pixels a side that a picture of each format can have, as Pillow writes it."""
MAX_STEM = 120
"""Bytes of a prompt in a file name; names have 255 at most, in some file systems 143."""
RESERVED = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]")
"""Names of devices on Windows, with any ending."""

overwrite_option = option(
    "--overwrite",
    aliases=["--replace"],
    is_flag=True,
    help="Replace a file at -o that seed-edge did not draw.",
)

finish_options = (
    click.option(
        "--size",
        "side",
        type=click.IntRange(16, 4096),
        help="Side of the saved image in pixels.  [default: side of the drawn image]",
    ),
    click.option(
        "--metadata/--no-metadata",
        default=True,
        help="Store prompt, seed and codes in the file; the mark of an AI-made image is always stored.",
    ),
    click.option(
        "--show/--no-show",
        default=None,
        help="Show the image in the terminal.  [default: if stdout is a terminal]",
    ),
)
diffusion_options = (
    click.option(
        "--fast", is_flag=True, default=None, help="Diffusion: a third of the steps, with the dpm++ solver."
    ),
    click.option(
        "--steps", type=click.IntRange(2, 500), help="Diffusion steps.  [default: set by the bundle]"
    ),
    click.option(
        "--guidance",
        "--cfg-scale",
        "guidance",
        type=Number(1, MOST_GUIDANCE),
        help="Guidance scale of the diffusion; 1 turns guidance off.  [default: set by the bundle]",
    ),
    click.option(
        "--scheduler",
        type=click.Choice(SCHEDULERS),
        help="Diffusion scheduler.  [default: set by the bundle]",
    ),
    click.option(
        "--tiled/--whole",
        default=None,
        help="Run the VAE decoder in tiles, which needs less memory.  [default: if memory is short]",
    ),
)


def together(
    name: str, options: Sequence[Callable[..., Any]], keys: Sequence[str]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options to a command, which gets them together in a dictionary of that name."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def collected(**given: Any) -> None:
            command(**{name: {key: given.pop(key) for key in keys}}, **given)

        for add in reversed(options):
            collected = add(collected)
        return collected

    return decorate


with_diffusion_options = together(
    "diffusion", diffusion_options, ("fast", "steps", "guidance", "scheduler", "tiled")
)
"""Adds the options of a diffusion, as `diffusion`."""
with_finish_options = together("finish", finish_options, ("side", "metadata", "show"))
"""Adds the options of what is saved, as `finish`."""


def diffusion_options_of(edge: SeedEdge, diffusion: dict[str, Any]) -> DiffusionOptions:
    """Options of a diffusion; refused for a bundle that has none."""
    import dataclasses

    from seed_edge.runtime.unclip import FAST, DiffusionOptions

    if not edge.engine.images.decoder.uses_diffusion:
        source = click.get_current_context().get_parameter_source
        if any(source(name) is ParameterSource.COMMANDLINE for name in diffusion):
            raise click.ClickException(
                "this bundle draws in one pass; leave out --fast, --steps, --guidance, --scheduler, --tiled"
            )
        return DiffusionOptions()
    chosen = {name: value for name, value in diffusion.items() if name != "fast" and value is not None}
    return dataclasses.replace(FAST if diffusion["fast"] else DiffusionOptions(), **chosen)


def check_grid(count: int, side: int, path: Path) -> None:
    """Refuse a grid that is too large to be kept in memory, saved, or opened again; before anything is drawn.

    Args:
        side: of each picture, in pixels.

    Raises:
        click.ClickException: it is.
    """
    from seed_edge.contact_sheet import columns_and_rows
    from seed_edge.memory import available_memory
    from seed_edge.preprocess import MAX_PIXELS

    width, height = (side * number for number in columns_and_rows(count))
    longest = MAX_SIDE[kind_of_picture(path)]
    needed, free = 2 * 3 * width * height, available_memory()  # the sheet, and what it becomes in its file
    if width * height > MAX_PIXELS:
        fault = f"over the limit of {MAX_PIXELS:,} in all"
    elif max(width, height) > longest:
        fault = f"over the {longest:,} a side that {path.suffix} can have"
    elif free is not None and needed > free:
        fault = f"which takes {needed:,} bytes, {free:,} are free"
    else:
        return
    raise click.ClickException(
        f"a grid of {count} pictures of {side} pixels a side has {width:,} x {height:,} pixels, {fault}; "
        "draw fewer, choose a smaller --size, or leave out --grid"
    )


@dataclass(frozen=True)
class Output:
    """Where a picture goes."""

    path: Path
    free: bool = False
    """Whether the first name like it is taken that no file has."""
    overwrite: bool = False
    """Whether a file may be replaced that seed-edge did not draw."""


def kind_of_picture(path: Path) -> str:
    """Pillow's name of the format for a file name; PNG for standard output, pipes and devices.

    Raises:
        ImageError: images are not written with this ending.
    """
    from seed_edge.image_metadata import FORMATS_BY_ENDING, format_of_name

    return FORMATS_BY_ENDING.get(path.suffix.lower(), "PNG") if is_stdout(path) else format_of_name(path)


def save_picture(image: Image, output: Output, record: Record | None) -> Path:
    """Write a picture so that it appears under its name only when complete; return that name.

    Args:
        record: how it was made, which the file is to carry; None to tell only that a machine made it.

    Raises:
        click.ClickException: it cannot be written, or a file would be lost.
    """
    from seed_edge.image_metadata import encode_image

    path = output.path
    try:
        data = encode_image(image, kind_of_picture(path), record)
        if is_stdout(path):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif output.free and not is_special(path):
            return write_new(path, lambda partial: _write(partial, data), alike(path))
        else:
            refuse_foreign(output)
            with replacing(path) as partial:
                _write(partial, data)
    except OSError as error:
        raise click.ClickException(why(error, path)) from error
    return path


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def show_picture(image: Image, wanted: bool | None) -> None:
    """Show a picture in the terminal, where it is wanted; where nothing is said, if stdout is a terminal."""
    from shutil import get_terminal_size

    from seed_edge.terminal import BLOCKS_256, protocol, shown

    how = None if wanted is False else protocol(sys.stdout)
    if how is None and wanted:
        how = BLOCKS_256  # asked for, whatever stdout is
    if how is not None:
        click.echo(shown(image, how, get_terminal_size().columns), nl=False, color=True)


def bundle_place(engine: RuntimeOptions) -> Path:
    """Folder of the bundle that a command runs.

    Raises:
        BundleError: there is none.
    """
    from seed_edge.bundle import EMBEDDED, find

    return EMBEDDED if engine.bundle is None else find(engine.bundle)


def read_files(engine: RuntimeOptions) -> list[Path]:
    """Files that a command reads besides its arguments: settings, the bundle's files, a file on stdin. None
    may be written to.

    Raises:
        BundleError: there is no such bundle.
    """
    from seed_edge.user_dirs import CONFIG, folder

    config = click.get_current_context().find_root().params.get("config")
    bundle = bundle_place(engine)
    return [config or folder("config") / CONFIG, *sorted(bundle.iterdir()), *regular_stdin()]


def check_output(output: Output, engine: RuntimeOptions, *inputs: str | Path) -> None:
    """Refuse an output that cannot be written or may not be, before any work.

    Args:
        inputs: files that the command reads.

    Raises:
        click.ClickException: the name, the folder or what is there stands against it.
        SeedEdgeError: it is an input, or lies in the bundle.
    """
    path = output.path
    if is_stdout(path):
        if sys.stdout.isatty():
            raise click.ClickException(
                "stdout is a terminal; lead it into a file or a program, or choose another -o"
            )
        return
    kind_of_picture(path)
    if not is_special(path):
        check_name(path)
        refuse_inside(path, bundle_place(engine), "-o")
    refuse_input(path, (*map(Path, inputs), *read_files(engine)), "-o")
    if not output.free:
        refuse_foreign(output)


def check_name(path: Path) -> None:
    """Refuse a name that no file can have.

    Raises:
        click.ClickException: it is a folder's, too long, or in a folder that is not there or cannot be
        written.
    """
    if os.path.isdir(path):
        raise click.ClickException(f"{path} is a folder; give a file name")
    if not os.path.isdir(path.parent):
        raise click.ClickException(f"{path.parent}: no such folder; make it first, or choose another -o")
    if not os.access(path.parent, os.W_OK):
        raise click.ClickException(f"{path.parent}: the folder cannot be written; choose another -o")
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise click.ClickException(why(error, path)) from error


def refuse_foreign(output: Output) -> None:
    """Refuse to replace a file that seed-edge did not draw, unless that was asked for.

    Raises:
        click.ClickException: such a file is there.
    """
    from seed_edge.image_metadata import drawn_here

    path = output.path
    if not output.overwrite and path.exists() and not is_special(path) and not drawn_here(path):
        raise click.ClickException(
            f"{path} was not drawn by seed-edge; choose another -o, or add --overwrite"
        )


def name_of(prompt: str, folder: Path | None = None) -> Path:
    """A file name made of the prompt: `a-red-fox.png`."""
    stem = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60]
    stem = stem.encode()[:MAX_STEM].decode("utf-8", "ignore") or "picture"
    if RESERVED.fullmatch(stem):
        stem = f"picture-{stem}"
    return (folder or Path()) / f"{stem}.png"


def numbered(path: Path, number: int) -> Path:
    """`fox.png` -> `fox-1.png`."""
    return path.with_stem(f"{path.stem}-{number}")


def alike(path: Path) -> Iterator[Path]:
    """`fox.png`, `fox-2.png`, `fox-3.png`, ...; without end."""
    yield path
    for number in itertools.count(2):
        yield numbered(path, number)


@contextmanager
def kept_latents(output: Path) -> Iterator[Callable[[Any], None]]:
    """Keeps the latents of a picture in a file beside it while the last stage works, which may run out of
    memory.
    """
    beside = (
        output.with_suffix(LATENTS)
        if not is_stdout(output) and not is_special(output)
        else Path("picture" + LATENTS)
    )
    kept: list[Path] = []

    def keep(latents: Any) -> None:
        import numpy as np

        def write(partial: Path) -> None:
            with open(partial, "wb") as file:
                np.save(file, latents)

        try:
            kept.append(write_new(beside, write, alike(beside)))
        except OSError as error:
            log.warning("what is half drawn is not kept: %s", why(error, beside))

    try:
        yield keep
    except (SeedEdgeError, MemoryError) as error:
        if not kept:
            raise
        import shlex

        again = f"seed-edge decode {shlex.quote(str(kept.pop()))} -o {shlex.quote(str(output))} --tiled"
        raise click.ClickException(
            f"{error}; what was drawn is kept: try `{again}` with the same --bundle"
        ) from error
    finally:
        for path in kept:
            path.unlink(missing_ok=True)
