"""Commands that look at pictures."""

from __future__ import annotations

import io
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seed_edge.commands.captions import Lines, Pace, Printed, Sidecars, Sink, chosen_images
from seed_edge.commands.common import (
    Engine,
    engine_options,
    given,
    json_option,
    max_pixels_option,
)
from seed_edge.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from seed_edge.runtime.pipeline import SeedEdge

SOME_FAILED = 3
"""Exit code where some of many files could not be captioned."""
STDIN_LIMIT = 1 << 28

temperature_option = click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0: the likeliest words."
)
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Used with --temperature.")


@click.command()
@click.argument("images", nargs=-1, type=click.Path(allow_dash=True))
@click.option("--out", type=click.Path(path_type=Path), help="File of JSON lines to write.")
@click.option("--sidecar", metavar="ENDING", help="Write a text file beside each image: `--sidecar txt`.")
@click.option("--resume", is_flag=True, help="Go on: images that have their caption in --out or --sidecar are passed over.")
@click.option("--overwrite", is_flag=True, help="Replace what --out or --sidecar hold.")
@click.option("--prefix", default="", help="Put before each caption.")
@click.option("--append", default="", help="Put behind each caption.")
@click.option("--stdin0", is_flag=True, help="Read names of images from stdin, each ended by a zero byte.")
@temperature_option
@seed_option
@click.option("--beams", type=click.IntRange(1, 16), help="Captions followed side by side.  [default: the bundle's]")
@max_pixels_option
@engine_options
@json_option
def caption(
    images: tuple[str, ...],
    out: Path | None,
    sidecar: str | None,
    resume: bool,
    overwrite: bool,
    prefix: str,
    append: str,
    stdin0: bool,
    temperature: float,
    seed: int,
    beams: int | None,
    max_pixels: int | None,
    engine: Engine,
    as_json: bool,
) -> None:
    """Describe IMAGES in words: files, folders with all that is in them, or - for an image from stdin.

    A file that cannot be read stops nothing: it is told at the end, and the exit code is 3.
    """
    if not images and not stdin0:
        raise click.UsageError("give IMAGES, folders, or - for an image from stdin")
    if out is not None and sidecar is not None:
        raise click.UsageError("--out and --sidecar exclude each other")
    if out is None and sidecar is None and (resume or overwrite):
        raise click.UsageError("--resume and --overwrite go with --out or --sidecar")
    options: dict[str, Any] = {"temperature": temperature, "seed": seed, "beams": beams}
    if images == ("-",):
        if out is not None or sidecar is not None:
            raise click.UsageError("an image from stdin has no name; leave out --out and --sidecar")
        picture = image_on_stdin(max_pixels)
        with engine.opened() as edge:
            Printed(as_json, alone=True).put(Path("-"), prefix + edge.caption(picture, **options) + append)
        return
    paths = chosen_images(images, stdin0)
    alone = len(paths) == 1 and not Path(images[0] if images else "").is_dir() and not stdin0
    with ExitStack() as stack:
        sink: Sink = Printed(as_json, alone)
        if out is not None:
            sink = stack.enter_context(Lines.opened(out, resume, overwrite))
        elif sidecar is not None:
            sink = Sidecars(sidecar, resume, overwrite)
        waiting = [path for path in paths if not sink.has(path)]
        if len(waiting) < len(paths):
            engine.note(f"{len(paths) - len(waiting):,} of {len(paths):,} have their caption")
        edge = stack.enter_context(engine.opened())
        failed = caption_all(
            edge, waiting, sink, prefix, append, alone, engine.quiet, **options, **given(max_pixels=max_pixels)
        )
    if out is not None:
        click.echo(str(out))
    if failed:
        click.echo(f"{len(failed):,} of {len(waiting):,} images have no caption:", err=True)
        for path, error in failed:
            click.echo(f"  {error if str(path) in error else f'{path}: {error}'}", err=True)
        raise click.exceptions.Exit(SOME_FAILED)


def caption_all(
    edge: SeedEdge, paths: list[Path], sink: Sink, prefix: str, append: str, alone: bool, quiet: bool, **options: Any
) -> list[tuple[Path, str]]:
    """Caption files into a sink; those that could not be read, with the reason."""
    from seed_edge.runtime.many import caption_files

    failed, pace = [], Pace(len(paths), quiet or alone)
    try:
        for each in caption_files(edge, paths, **options):
            if each.caption is None:
                if alone:
                    raise ImageError(str(each.error))
                failed.append((each.path, str(each.error)))
            else:
                sink.put(each.path, prefix + each.caption + append)
            pace.step()
    finally:
        pace.end()
    return failed


def image_on_stdin(max_pixels: int | None) -> Image:
    """The image that stdin holds.

    Raises:
        ImageError: it is too large, or none.
    """
    from seed_edge.preprocess import open_image

    with click.open_file("-", "rb") as file:
        data: bytes = file.read(STDIN_LIMIT + 1)
    if len(data) > STDIN_LIMIT:
        raise ImageError(f"stdin holds over {STDIN_LIMIT:,} bytes; give a file instead")
    return open_image(io.BytesIO(data), **given(max_pixels=max_pixels))


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path())
@max_pixels_option
@engine_options
@json_option
def encode(images: tuple[str, ...], max_pixels: int | None, engine: Engine, as_json: bool) -> None:
    """Turn IMAGES into codes, one line each."""
    from seed_edge.preprocess import open_image

    with engine.opened() as edge:
        for image in images:
            codes = edge.encode([open_image(image, **given(max_pixels=max_pixels))])[0].tolist()
            click.echo(json.dumps({"image": image, "codes": codes}) if as_json else " ".join(map(str, codes)))


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.argument("question")
@temperature_option
@seed_option
@max_pixels_option
@engine_options
@json_option
def ask(
    images: tuple[str, ...],
    question: str,
    temperature: float,
    seed: int,
    max_pixels: int | None,
    engine: Engine,
    as_json: bool,
) -> None:
    """Answer QUESTION about one or several IMAGES."""
    from seed_edge.preprocess import open_image

    pictures = [open_image(image, **given(max_pixels=max_pixels)) for image in images]
    with engine.opened() as edge:
        text = edge.ask(pictures, question, temperature=temperature, seed=seed)
    record = {"images": list(images), "question": question, "answer": text}
    click.echo(json.dumps(record, ensure_ascii=False) if as_json else text)
