"""Output of the commands that write images: diffusion options, output paths, image files, latents."""

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
from seed_edge.commands.common import MAX_GUIDANCE, SCHEDULERS, Number, option
from seed_edge.errors import SeedEdgeError
from seed_edge.output_checks import (
    check_not_input,
    check_not_inside,
    is_stdout,
    regular_stdin,
    write_error_message,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from seed_edge.commands.common import RuntimeOptions
    from seed_edge.image_metadata import Record
    from seed_edge.runtime.pipeline import SeedEdge
    from seed_edge.runtime.unclip import DiffusionOptions

log = logging.getLogger("seed_edge")

LATENTS = ".npy"
MAX_SIDE = {"PNG": (1 << 31) - 1, "WEBP": 16_383, "JPEG": 65_500}
"""Maximum side of an image in pixels that Pillow writes, by format."""
MAX_STEM = 120
"""Maximum bytes of a prompt in a file name; file systems allow names of 255 bytes, some only 143."""
RESERVED = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]")
"""Names that Windows reserves for devices, with any ending."""

overwrite_option = option(
    "--overwrite",
    aliases=["--replace"],
    is_flag=True,
    help="Replace a file at -o that seed-edge did not draw.",
)

save_options = (
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
        type=Number(1, MAX_GUIDANCE),
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


def option_group(
    name: str, options: Sequence[Callable[..., Any]], keys: Sequence[str]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds options to a command and passes their values as one dictionary.

    Args:
        name: parameter of the command that receives the dictionary.
        keys: parameter names of the options.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            command(**{name: {key: values.pop(key) for key in keys}}, **values)

        for add_option in reversed(options):
            wrapper = add_option(wrapper)
        return wrapper

    return decorate


with_diffusion_options = option_group(
    "diffusion", diffusion_options, ("fast", "steps", "guidance", "scheduler", "tiled")
)
"""Decorator that adds the diffusion options; the command receives them as `diffusion`."""
with_save_options = option_group("saving", save_options, ("side", "metadata", "show"))
"""Decorator that adds the options for saving an image; the command receives them as `saving`."""


def make_diffusion_options(edge: SeedEdge, diffusion: dict[str, Any]) -> DiffusionOptions:
    """Return the `DiffusionOptions` for the values of `with_diffusion_options`.

    Raises:
        click.ClickException: options were given on the command line, and the bundle has no diffusion.
    """
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
    """Check that a grid can be held in memory, saved and opened again.

    Args:
        count: number of images.
        side: side of each image in pixels.
        path: path of the grid; its ending gives the format.

    Raises:
        click.ClickException: the grid is too large.
    """
    from seed_edge.contact_sheet import columns_and_rows
    from seed_edge.image_files import MAX_PIXELS
    from seed_edge.memory import available_memory

    width, height = (side * number for number in columns_and_rows(count))
    max_side = MAX_SIDE[image_format(path)]
    needed, free = 2 * 3 * width * height, available_memory()  # RGB of the grid, and its encoded file
    if width * height > MAX_PIXELS:
        reason = f"over the limit of {MAX_PIXELS:,} pixels in total"
    elif max(width, height) > max_side:
        reason = f"over the limit of {max_side:,} per side of {path.suffix}"
    elif free is not None and needed > free:
        reason = f"and needs {needed:,} bytes of memory, but {free:,} are free"
    else:
        return
    raise click.ClickException(
        f"a grid of {count} images of {side} pixels per side has {width:,} x {height:,} pixels, {reason}; "
        "draw fewer, choose a smaller --size, or leave out --grid"
    )


@dataclass(frozen=True)
class Output:
    """Destination of an image."""

    path: Path
    numbered: bool = False
    """Whether a number is added to the name if a file of that name exists; then no file is replaced."""
    overwrite: bool = False
    """Whether a file that seed-edge did not draw may be replaced."""


def folder_or_file(output: str | None, always_folder: bool = False) -> tuple[Path | None, Path | None]:
    """Return the value of -o as (folder, None) or (None, file); (None, None) without a value.

    A folder ends with a slash or exists.

    Args:
        always_folder: treat any value as a folder.
    """
    if output is None:
        return None, None
    if always_folder or output.endswith(("/", os.sep)) or os.path.isdir(output):
        return Path(output), None
    return None, Path(output)


def make_folder(folder: Path, runtime: RuntimeOptions) -> None:
    """Create the folder of -o, unless it exists.

    Raises:
        click.ClickException: its parent does not exist, or it is a file.
        SeedEdgeError: it lies in the bundle.
    """
    check_not_inside(folder, bundle_path(runtime), "-o")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise click.ClickException(
            f"{folder}: the folder cannot be created ({error.strerror}); choose another -o"
        ) from error


def resolve_output(output: str | None, default: Path, overwrite: bool, runtime: RuntimeOptions) -> Output:
    """Return the destination for a value of -o: a file, or a file of the default name in a folder.

    The folder is created.

    Args:
        default: file name in a folder, or without -o in the working directory; numbered if it exists.

    Raises:
        click.ClickException: the folder cannot be created.
        SeedEdgeError: the folder lies in the bundle.
    """
    folder, path = folder_or_file(output)
    if folder is not None:
        make_folder(folder, runtime)
    if path is not None:
        return Output(path, overwrite=overwrite)
    return Output((folder or Path()) / default, numbered=True, overwrite=overwrite)


def image_format(path: Path) -> str:
    """Return Pillow's name of the format for a file name; PNG for standard output, pipes and devices.

    Raises:
        ImageError: the file name has no ending of an image format that can be written.
    """
    from seed_edge.image_metadata import FORMATS_BY_EXTENSION, format_for_path

    return FORMATS_BY_EXTENSION.get(path.suffix.lower(), "PNG") if is_stdout(path) else format_for_path(path)


def write_image(image: Image, output: Output, record: Record | None) -> Path:
    """Write an image file, which appears only when it is complete, and return its path.

    Args:
        record: provenance to store in the file; None stores only the mark of an AI-made image.

    Raises:
        click.ClickException: the file cannot be written, or would replace one that must not be replaced.
    """
    from seed_edge.image_metadata import encode_image

    path = output.path
    try:
        data = encode_image(image, image_format(path), record)
        if is_stdout(path):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif output.numbered and not is_special(path):
            return write_new(path, lambda partial: _write(partial, data), numbered_names(path))
        else:
            check_replaceable(output)
            with replacing(path) as partial:
                _write(partial, data)
    except OSError as error:
        raise click.ClickException(write_error_message(error, path)) from error
    return path


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def show_image(image: Image, show: bool | None) -> None:
    """Print an image in the terminal.

    Args:
        show: None prints it only if stdout is a terminal.
    """
    from shutil import get_terminal_size

    from seed_edge.terminal import BLOCKS_256, detect_protocol, render

    protocol = None if show is False else detect_protocol(sys.stdout)
    if protocol is None and show:
        protocol = BLOCKS_256  # --show also applies to a stdout that is not a terminal
    if protocol is not None:
        click.echo(render(image, protocol, get_terminal_size().columns), nl=False, color=True)


def bundle_path(runtime: RuntimeOptions) -> Path:
    """Return the folder of the bundle that a command runs.

    Raises:
        BundleError: there is no such bundle.
    """
    from seed_edge.bundle import EMBEDDED, find

    return EMBEDDED if runtime.bundle is None else find(runtime.bundle)


def files_in_use(runtime: RuntimeOptions) -> list[Path]:
    """Return the files that a command reads besides its arguments: settings, the bundle's files, a file on
    stdin. No output may replace them.

    Raises:
        BundleError: there is no such bundle.
    """
    from seed_edge.user_dirs import CONFIG, folder

    config = click.get_current_context().find_root().params.get("config")
    bundle = bundle_path(runtime)
    return [config or folder("config") / CONFIG, *sorted(bundle.iterdir()), *regular_stdin()]


def check_output(output: Output, runtime: RuntimeOptions, *inputs: str | Path) -> None:
    """Check that an output can be written and replaces nothing that must stay; called before any work.

    Args:
        inputs: files that the command reads.

    Raises:
        click.ClickException: the name is invalid, the folder cannot be written, or the file must not be
            replaced.
        SeedEdgeError: the output is an input, or lies in the bundle.
    """
    path = output.path
    if is_stdout(path):
        if sys.stdout.isatty():
            raise click.ClickException(
                "stdout is a terminal; redirect it to a file or a program, or choose another -o"
            )
        return
    image_format(path)
    if not is_special(path):
        check_name(path)
        check_not_inside(path, bundle_path(runtime), "-o")
    check_not_input(path, (*map(Path, inputs), *files_in_use(runtime)), "-o")
    if not output.numbered:
        check_replaceable(output)


def check_name(path: Path) -> None:
    """Check that a file of this name can be created.

    Raises:
        click.ClickException: the path is a folder, the name is too long, or the parent folder does not exist
            or cannot be written.
    """
    if os.path.isdir(path):
        raise click.ClickException(f"{path} is a folder; give a file name")
    if not os.path.isdir(path.parent):
        raise click.ClickException(f"{path.parent}: no such folder; create it first, or choose another -o")
    if not os.access(path.parent, os.W_OK):
        raise click.ClickException(f"{path.parent}: the folder cannot be written; choose another -o")
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise click.ClickException(write_error_message(error, path)) from error


def check_replaceable(output: Output) -> None:
    """Check that an existing file was drawn by seed-edge, unless it may be overwritten.

    Raises:
        click.ClickException: another file exists at the path.
    """
    from seed_edge.image_metadata import is_seed_edge_image

    path = output.path
    if not output.overwrite and path.exists() and not is_special(path) and not is_seed_edge_image(path):
        raise click.ClickException(
            f"{path} was not drawn by seed-edge; choose another -o, or add --overwrite"
        )


def prompt_file_name(prompt: str, folder: Path | None = None) -> Path:
    """Return a file name made from a prompt, such as `a-red-fox.png`, in `folder`."""
    stem = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60]
    stem = stem.encode()[:MAX_STEM].decode("utf-8", "ignore") or "picture"
    if RESERVED.fullmatch(stem):
        stem = f"picture-{stem}"
    return (folder or Path()) / f"{stem}.png"


def numbered(path: Path, number: int) -> Path:
    """Return `fox-1.png` for `fox.png` and 1."""
    return path.with_stem(f"{path.stem}-{number}")


def numbered_names(path: Path) -> Iterator[Path]:
    """Yield `fox.png`, `fox-2.png`, `fox-3.png`, ... without end."""
    yield path
    for number in itertools.count(2):
        yield numbered(path, number)


@contextmanager
def backup_latents(output: Path) -> Iterator[Callable[[Any], None]]:
    """Save the latents of an image next to it during the last stage, which may run out of memory.

    Yields a function that writes the latents. The file stays if the block fails, and is deleted otherwise.

    Raises:
        click.ClickException: the block failed after the latents were saved; the message has the command that
            decodes them.
    """
    latents_path = (
        output.with_suffix(LATENTS)
        if not is_stdout(output) and not is_special(output)
        else Path("picture" + LATENTS)
    )
    saved: list[Path] = []

    def save(latents: Any) -> None:
        import numpy as np

        def write(partial: Path) -> None:
            with open(partial, "wb") as file:
                np.save(file, latents)

        try:
            saved.append(write_new(latents_path, write, numbered_names(latents_path)))
        except OSError as error:
            log.warning("the latents are not saved: %s", write_error_message(error, latents_path))

    try:
        yield save
    except (SeedEdgeError, MemoryError) as error:
        if not saved:
            raise
        import shlex

        command = f"seed-edge decode {shlex.quote(str(saved.pop()))} -o {shlex.quote(str(output))} --tiled"
        raise click.ClickException(
            f"{error}; the latents are saved: try `{command}` with the same --bundle"
        ) from error
    finally:
        for path in saved:
            path.unlink(missing_ok=True)
