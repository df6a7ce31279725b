"""What commands that make pictures share: options of a diffusion, where pictures and what is half done are kept."""

from __future__ import annotations

import functools
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from seed_edge.errors import SeedEdgeError

if TYPE_CHECKING:
    from PIL.Image import Image

    from seed_edge.record import Record
    from seed_edge.runtime.pipeline import SeedEdge
    from seed_edge.runtime.unclip import DiffusionOptions

LATENTS = ".npy"
PICTURE_TYPES = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}


finish_options = (
    click.option(
        "--size", "side", type=click.IntRange(16, 4096), help="Pixels a side of what is saved.  [default: as it is drawn]"
    ),
    click.option(
        "--metadata/--no-metadata",
        default=True,
        help="Whether the file tells prompt, seed and codes; it tells that it is AI-made anyway.",
    ),
    click.option("--show/--no-show", default=None, help="Show it in the terminal too.  [default: where stdout is one]"),
)
diffusion_options = (
    click.option("--fast", is_flag=True, default=None, help="Of a diffusion: a third of the steps, by a better solver."),
    click.option("--steps", type=click.IntRange(2, 500), help="Of a diffusion.  [default: the bundle's]"),
    click.option("--guidance", type=click.FloatRange(1), help="Of a diffusion; 1 for none.  [default: the bundle's]"),
    click.option("--scheduler", help="Of a diffusion: pndm, ddim or dpm++.  [default: the bundle's]"),
    click.option(
        "--tiled/--whole", default=None, help="Last stage in tiles, in less memory.  [default: where memory is short]"
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

        for option in reversed(options):
            collected = option(collected)
        return collected

    return decorate


with_diffusion_options = together("walk", diffusion_options, ("fast", "steps", "guidance", "scheduler", "tiled"))
"""Adds the options of a diffusion, as `walk`."""
with_finish_options = together("finish", finish_options, ("side", "metadata", "show"))
"""Adds the options of what is saved, as `finish`."""


def walk_of(edge: SeedEdge, walk: dict[str, Any]) -> DiffusionOptions:
    """Options of a diffusion; refused for a bundle that has none."""
    import dataclasses

    from seed_edge.runtime.unclip import FAST, DiffusionOptions

    if edge.bundle.manifest.kind == "pixels":
        source = click.get_current_context().get_parameter_source
        if any(source(name) is ParameterSource.COMMANDLINE for name in walk):
            raise click.ClickException(
                "this bundle draws in one pass; leave out --fast, --steps, --guidance, --scheduler, --tiled"
            )
        return DiffusionOptions()
    chosen = {name: value for name, value in walk.items() if name != "fast" and value is not None}
    return dataclasses.replace(FAST if walk["fast"] else DiffusionOptions(), **chosen)


def resized(image: Image, side: int | None) -> Image:
    """A square picture of so many pixels a side; as it is for None."""
    from PIL.Image import Resampling

    return image if side is None or image.size == (side, side) else image.resize((side, side), Resampling.LANCZOS)


def grid_of(images: Sequence[Image]) -> Image:
    """Pictures of one size side by side, in rows as nearly square as can be."""
    from PIL import Image as pillow

    width, height = images[0].size
    columns = math.ceil(math.sqrt(len(images)))
    sheet = pillow.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * width, number // columns * height))
    return sheet


def save_picture(image: Image, path: Path, record: Record | None) -> None:
    """Write a picture so that it appears under its name only when complete.

    Args:
        record: how it was made, which the file is to carry; None to tell only that a machine made it.
    """
    from seed_edge.record import saving_options

    kind = PICTURE_TYPES.get(path.suffix.lower())
    if kind is None:
        raise click.ClickException(f"{path}: pictures are written as {', '.join(PICTURE_TYPES)}; choose one of these")
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise click.ClickException(f"{path}: the folder cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(handle, "wb") as file:
            image.save(file, kind, quality=95, **saving_options(kind, record, image))
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)
        os.replace(partial, path)
    except BaseException as error:
        Path(partial).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise click.ClickException(f"{path} cannot be written ({error.strerror})") from error
        raise


def show_picture(image: Image, wanted: bool | None) -> None:
    """Show a picture in the terminal, where it is wanted; where nothing is said, if stdout is a terminal."""
    from shutil import get_terminal_size

    from seed_edge.terminal import BLOCKS_256, protocol, shown

    how = None if wanted is False else protocol(sys.stdout)
    if how is None and wanted:
        how = BLOCKS_256  # asked for, whatever stdout is
    if how is not None:
        click.echo(shown(image, how, get_terminal_size().columns), nl=False, color=True)


def check_output(path: Path) -> None:
    """Refuse an output that cannot be written, before any work."""
    if path.suffix.lower() not in PICTURE_TYPES:
        raise click.ClickException(f"{path}: pictures are written as {', '.join(PICTURE_TYPES)}; choose one of these")
    if path.is_dir():
        raise click.ClickException(f"{path} is a folder; give a file name")
    if not path.parent.is_dir():
        raise click.ClickException(f"{path.parent}: no such folder; make it first, or choose another -o")
    if not os.access(path.parent, os.W_OK):
        raise click.ClickException(f"{path.parent}: the folder cannot be written; choose another -o")


def free_name(prompt: str, folder: Path | None = None) -> Path:
    """A file name made of the prompt that does not exist yet: `a-red-fox.png`, `a-red-fox-2.png`, ..."""
    stem = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60] or "picture"
    return unused((folder or Path()) / f"{stem}.png")


def numbered(path: Path, number: int) -> Path:
    """`fox.png` -> `fox-1.png`, or the next number that makes it a name of no file."""
    return unused(path.with_stem(f"{path.stem}-{number}"))


def unused(path: Path) -> Path:
    """`path`, or with the first number that makes it a name of no file."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


@contextmanager
def kept_latents(output: Path) -> Iterator[Callable[[Any], None]]:
    """Keeps the latents of a picture in a file beside it while the last stage works, which may run out of memory."""
    path, failed = unused(output.with_suffix(LATENTS)), False

    def keep(latents: Any) -> None:
        import numpy as np

        np.save(path, latents)

    try:
        yield keep
    except (SeedEdgeError, MemoryError) as error:
        failed = True
        if path.exists():
            again = f"seed-edge decode {path} -o {output} --tiled"
            raise click.ClickException(f"{error}; what was drawn is kept: try `{again}` with the same --bundle") from error
        raise
    finally:
        if not failed:
            path.unlink(missing_ok=True)
