"""The commands `caption`, `encode` and `ask`."""

from __future__ import annotations

import io
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from seed_edge.commands.caption_output import (
    CaptionNotSaved,
    CaptionSink,
    FileProgress,
    FoundInputs,
    JsonLinesSink,
    SidecarSink,
    StdoutSink,
    find_inputs,
    sidecar_ending,
)
from seed_edge.commands.codes_input import read_file_names
from seed_edge.commands.common import (
    SEED,
    TEMPERATURE,
    TEXT,
    RuntimeOptions,
    json_option,
    max_pixels_option,
    output_option,
    overwrite_option,
    present,
    print_json,
    print_path,
    runtime_options,
)
from seed_edge.commands.config import write_stderr
from seed_edge.commands.exit_codes import SOME_FAILED
from seed_edge.commands.image_output import bundle_path, files_in_use
from seed_edge.display import printable
from seed_edge.errors import ImageError
from seed_edge.output_checks import check_not_inside, is_stdout

if TYPE_CHECKING:
    from PIL.Image import Image

    from seed_edge.runtime.pipeline import SeedEdge

STDIN_LIMIT = 1 << 28
"""Maximum size of an image on stdin in bytes."""
MAX_ENDINGS = 8
"""Maximum number of file endings in the message about skipped files."""

temperature_option = click.option(
    "--temperature",
    type=TEMPERATURE,
    default=0.0,
    show_default=True,
    help="Sampling temperature; 0 takes the most likely token.",
)
seed_option = click.option(
    "-s", "--seed", type=SEED, default=0, show_default=True, help="Random seed, used with --temperature."
)


files_from_option = click.option(
    "--files-from",
    type=click.Path(allow_dash=True),
    help="File with one image file name per line; - for stdin.",
)


def with_files_from(images: tuple[str, ...], files_from: str | None) -> tuple[str, ...]:
    """Return the arguments, followed by the names in the file of --files-from."""
    return images if files_from is None else (*images, *read_file_names(files_from))


@click.command()
@click.argument("images", nargs=-1, type=click.Path(allow_dash=True))
@output_option("File of JSON lines to write; - for stdout.")
@click.option(
    "--sidecar",
    metavar="ENDING",
    callback=sidecar_ending,
    help="Write a text file next to each image: `--sidecar txt`.",
)
@click.option("--full-names", is_flag=True, help="With --sidecar: `photo.jpg.txt` instead of `photo.txt`.")
@click.option("--resume", is_flag=True, help="Skip images that have a caption in --output or --sidecar.")
@overwrite_option("Replace the captions in --output or --sidecar.")
@click.option("--prefix", type=TEXT, default="", help="Text before each caption.")
@click.option("--append", type=TEXT, default="", help="Text after each caption.")
@files_from_option
@click.option("--stdin0", is_flag=True, help="Read file names from stdin, each ended by a NUL byte.")
@temperature_option
@seed_option
@click.option("--beams", type=click.IntRange(1, 16), help="Beam width.  [default: set by the bundle]")
@max_pixels_option
@runtime_options
@json_option
def caption(
    images: tuple[str, ...],
    out: Path | None,
    sidecar: str | None,
    full_names: bool,
    resume: bool,
    overwrite: bool,
    prefix: str,
    append: str,
    files_from: str | None,
    stdin0: bool,
    temperature: float,
    seed: int,
    beams: int | None,
    max_pixels: int | None,
    runtime: RuntimeOptions,
    as_json: bool,
) -> None:
    """Caption IMAGES: files, folders, or - for an image from stdin.

    Files that cannot be read are listed at the end, and the exit code is 3.
    """
    if not images and not stdin0 and files_from is None:
        raise click.UsageError("give IMAGES, folders, --files-from, or - for an image from stdin")
    if out is not None and sidecar is not None:
        raise click.UsageError("--output and --sidecar exclude each other")
    if out is None and sidecar is None and (resume or overwrite):
        raise click.UsageError("--resume and --overwrite need --output or --sidecar")
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if full_names and sidecar is None:
        raise click.UsageError("--full-names needs --sidecar")
    options: dict[str, Any] = {"temperature": temperature, "seed": seed, "beams": beams}
    if images == ("-",):
        if out is not None or sidecar is not None:
            raise click.UsageError("an image from stdin has no name; leave out --output and --sidecar")
        image = read_image_from_stdin(max_pixels)
        with runtime.open_bundle() as edge:
            StdoutSink(as_json, single=True).write(
                Path("-"), prefix + edge.caption(image, **options) + append
            )
        return
    single_file = len(images) == 1 and files_from is None and not stdin0 and not os.path.isdir(images[0])
    inputs = find_inputs(with_files_from(images, files_from), stdin0)
    report_skipped(inputs, runtime)
    single = single_file and len(inputs.paths) == 1 and not inputs.failed
    with ExitStack() as stack:
        sink: CaptionSink
        if sidecar is not None:
            sink = SidecarSink(sidecar, full_names, resume, overwrite, inputs.paths, files_in_use(runtime))
        elif out is None or is_stdout(out):
            sink = StdoutSink(as_json or out is not None, single)
        else:
            check_not_inside(out, bundle_path(runtime), "--output")
            sink = stack.enter_context(
                JsonLinesSink.open(out, resume, overwrite, (*inputs.paths, *files_in_use(runtime)))
            )
        pending, failed = select_pending(inputs.paths, sink, single)
        done = len(inputs.paths) - len(pending) - len(failed)
        if done:
            runtime.note(f"skipped {done:,} of {len(inputs.paths):,} images, which already have a caption")
        total, failed = len(pending) + len(failed) + len(inputs.failed), inputs.failed + failed
        if pending:
            edge = stack.enter_context(runtime.open_bundle())
            failed += caption_to_sink(
                edge,
                pending,
                sink,
                prefix,
                append,
                single,
                runtime.quiet,
                **options,
                **present(max_pixels=max_pixels),
            )
    if out is not None and not is_stdout(out):
        print_path(out)
    if failed:
        exit_with_failures(failed, f"{len(failed):,} of {total:,} images were not captioned:")


def exit_with_failures(failed: list[tuple[Path, str]], heading: str) -> NoReturn:
    """List images that failed, with the reasons, and exit with code 3."""
    write_stderr(heading, "error")
    for path, error in failed:
        write_stderr(f"  {error if str(path) in error else f'{path}: {error}'}", "error")
    raise click.exceptions.Exit(SOME_FAILED)


def report_skipped(inputs: FoundInputs, runtime: RuntimeOptions) -> None:
    """Write a message about the files of folders that were skipped."""
    counts = [
        f"{printable(ending)} {count:,}" for ending, count in inputs.skipped.most_common(MAX_ENDINGS) if count
    ]
    if counts:
        more = ", ..." if len(inputs.skipped) > MAX_ENDINGS else ""
        runtime.note(f"skipped files that are not images, by ending: {', '.join(counts)}{more}")


def select_pending(
    paths: list[Path], sink: CaptionSink, single: bool
) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return the images without a caption, and those whose caption cannot be saved, with the reason.

    Args:
        single: raise the error of an image instead.
    """
    pending, failed = [], []
    for path in paths:
        try:
            if not sink.is_done(path):
                pending.append(path)
        except CaptionNotSaved as error:
            if single:
                raise
            failed.append((path, str(error)))
    return pending, failed


def caption_to_sink(
    edge: SeedEdge,
    paths: list[Path],
    sink: CaptionSink,
    prefix: str,
    append: str,
    single: bool,
    quiet: bool,
    **options: Any,
) -> list[tuple[Path, str]]:
    """Caption images and write the captions to a sink; return the images that failed, with the reason.

    Args:
        prefix: text before each caption.
        append: text after each caption.
        single: raise the error of an image instead.
        options: of `caption_files`.
    """
    from seed_edge.runtime.batch import caption_files

    failed, progress = [], FileProgress(len(paths), quiet or single)
    try:
        for result in caption_files(edge, paths, **options):
            progress.clear()
            try:
                if result.caption is None:
                    raise ImageError(str(result.error))
                sink.write(result.path, prefix + result.caption + append)
            except (ImageError, CaptionNotSaved) as error:
                if single:
                    raise
                failed.append((result.path, str(error)))
            progress.step()
    finally:
        progress.clear()
    return failed


def read_image_from_stdin(max_pixels: int | None) -> Image:
    """Read an image from stdin.

    Raises:
        ImageError: the data is too large, or not an image.
    """
    from seed_edge.preprocess import open_image

    with click.open_file("-", "rb") as file:
        data: bytes = file.read(STDIN_LIMIT + 1)
    if len(data) > STDIN_LIMIT:
        raise ImageError(f"stdin holds over {STDIN_LIMIT:,} bytes; give a file instead")
    return open_image(io.BytesIO(data), **present(max_pixels=max_pixels))


@click.command()
@click.argument("images", nargs=-1, type=click.Path(allow_dash=True))
@files_from_option
@max_pixels_option
@runtime_options
@json_option
def encode(
    images: tuple[str, ...],
    files_from: str | None,
    max_pixels: int | None,
    runtime: RuntimeOptions,
    as_json: bool,
) -> None:
    """Encode IMAGES to codes, one line for each image.

    IMAGES are files, folders, or - for an image from stdin. If one of several files cannot be read, the
    others are encoded, the failed ones are listed at the end, and the exit code is 3.
    """
    if not images and files_from is None:
        raise click.UsageError("give IMAGES, folders, --files-from, or - for an image from stdin")
    if images == ("-",) and files_from is None:
        image = read_image_from_stdin(max_pixels)
        with runtime.open_bundle() as edge:
            print_codes("-", edge.encode([image])[0].tolist(), as_json)
        return
    single_file = len(images) == 1 and files_from is None and not os.path.isdir(images[0])
    inputs = find_inputs(with_files_from(images, files_from), False)
    report_skipped(inputs, runtime)
    failed, total = list(inputs.failed), len(inputs.paths) + len(inputs.failed)
    with runtime.open_bundle() as edge:
        for path in inputs.paths:
            try:
                print_codes(str(path), encode_file(edge, path, max_pixels), as_json)
            except ImageError as error:
                if single_file:
                    raise
                failed.append((path, str(error)))
    if failed:
        exit_with_failures(failed, f"{len(failed):,} of {total:,} images were not encoded:")


def encode_file(edge: SeedEdge, path: Path, max_pixels: int | None) -> list[int]:
    """Encode the image in a file.

    Raises:
        ImageError: the file cannot be read as an image.
    """
    from seed_edge.preprocess import open_image

    codes: list[int] = edge.encode([open_image(str(path), **present(max_pixels=max_pixels))])[0].tolist()
    return codes


def print_codes(image: str, codes: list[int], as_json: bool) -> None:
    """Print the codes of an image as one line: a JSON object with `image` and `codes`, or integers."""
    if as_json:
        print_json({"image": image, "codes": codes})
    else:
        click.echo(" ".join(map(str, codes)))


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.argument("question", type=TEXT)
@temperature_option
@seed_option
@max_pixels_option
@runtime_options
@json_option
def ask(
    images: tuple[str, ...],
    question: str,
    temperature: float,
    seed: int,
    max_pixels: int | None,
    runtime: RuntimeOptions,
    as_json: bool,
) -> None:
    """Answer QUESTION about one or several IMAGES."""
    from seed_edge.preprocess import open_image

    opened_images = [open_image(image, **present(max_pixels=max_pixels)) for image in images]
    with runtime.open_bundle() as edge:
        text = edge.ask(opened_images, question, temperature=temperature, seed=seed)
    record = {"images": list(images), "question": question, "answer": text}
    if as_json:
        print_json(record)
    else:
        click.echo(text)
