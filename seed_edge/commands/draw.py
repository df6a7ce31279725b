"""The command `draw`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seed_edge.commands.caption_output import FileProgress
from seed_edge.commands.codes_input import read_prompts
from seed_edge.commands.common import (
    MAX_SEED,
    TEXT,
    RuntimeOptions,
    json_option,
    note,
    option,
    present,
    runtime_options,
)
from seed_edge.commands.image_output import (
    Output,
    check_grid,
    check_output,
    folder_or_file,
    make_folder,
    numbered,
    overwrite_option,
    prompt_file_name,
    resolve_output,
    with_diffusion_options,
    with_save_options,
)
from seed_edge.commands.image_writer import (
    ContactSheet,
    ImageWriter,
    check_stdout_is_free,
    image_writer,
    new_seed,
    report_output,
    seed_option,
    temperature_option,
    without_display,
)
from seed_edge.errors import PromptError
from seed_edge.output_checks import is_stdout

if TYPE_CHECKING:
    from seed_edge.image_metadata import Record
    from seed_edge.runtime.pipeline import SeedEdge


MAX_IMAGES = 1000


@click.command()
@click.argument("prompt", required=False, type=TEXT)
@click.option("-p", "--prompt", "prompt_option", type=TEXT, help="Prompt, instead of the argument PROMPT.")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="Image to write; - for stdout; FOLDER/ for an image in a folder.  [default: named after the prompt]",
)
@overwrite_option
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, MAX_IMAGES),
    default=1,
    show_default=True,
    help="Number of images.",
)
@click.option("--grid", is_flag=True, help="Write all images into one contact sheet.")
@click.option(
    "--prompts", type=click.Path(), help="File with one prompt per line, or - for stdin; -o is then a folder."
)
@click.option(
    "--from", "source", type=click.Path(), help="Image drawn by seed-edge: draw it again from its metadata."
)
@click.option("--negative-prompt", "--negative", "negative", type=TEXT, help="Negative prompt.")
@seed_option
@temperature_option
@option(
    "--best-of",
    aliases=["--tries"],
    type=click.IntRange(1, 16),
    help="Number of candidates; the most likely one is kept.  [default: set by the bundle]",
)
@with_diffusion_options
@with_save_options
@runtime_options
@json_option
def draw(
    prompt: str | None,
    prompt_option: str | None,
    output: str | None,
    overwrite: bool,
    count: int,
    grid: bool,
    prompts: str | None,
    source: str | None,
    negative: str | None,
    seed: int | None,
    temperature: float | None,
    best_of: int | None,
    diffusion: dict[str, Any],
    saving: dict[str, Any],
    runtime: RuntimeOptions,
    as_json: bool,
) -> None:
    """Draw an image of PROMPT.

    With -n, the seed of each further image is one higher. The metadata of an image holds prompt, seed, codes
    and bundle, so that --from draws it again, and the mark of an AI-made image.
    """
    saving = without_display(saving) if as_json else saving
    if len(present(prompt=prompt, prompt_option=prompt_option, prompts=prompts, source=source)) != 1:
        raise click.UsageError(
            'give one of: a PROMPT such as "a red fox", -p PROMPT, --prompts FILE, --from IMAGE'
        )
    prompt = prompt if prompt_option is None else prompt_option
    folder, path = folder_or_file(output, prompts is not None)
    check_stdout_is_free(path, as_json)
    if path is not None and is_stdout(path) and count > 1 and not grid:
        raise click.UsageError("stdout takes one image; add --grid, or choose another -o")
    if source is not None:
        redraw(source, output, overwrite, diffusion, saving, runtime, as_json)
        return
    if folder is not None:
        make_folder(folder, runtime)
    file_output = None if path is None else Output(path, count > 1 and not grid, overwrite)
    check_output(
        file_output or Output(prompt_file_name("", folder), numbered=True),
        runtime,
        *([prompts] if prompts not in (None, "-") else []),
    )
    prompt_texts = [prompt] if prompt is not None else list(read_prompts(str(prompts)))
    seed = new_seed(runtime) if seed is None else seed
    if seed + count - 1 > MAX_SEED:
        raise click.UsageError(f"--seed {seed} with -n {count} exceeds 2**63 - 1; choose a lower seed")
    failed = 0
    with runtime.open_bundle() as edge:
        writer = image_writer(
            edge, runtime, diffusion, saving, temperature=temperature, best_of=best_of, negative=negative
        )
        if grid:
            check_grid(count, writer.drawn_side(), (file_output or Output(prompt_file_name(""))).path)
        for text in prompt_texts:
            target = file_output or Output(prompt_file_name(text, folder), numbered=True)
            try:
                (draw_grid if grid else draw_each)(writer, text, range(seed, seed + count), target, as_json)
            except PromptError as error:
                if len(prompt_texts) == 1:
                    raise
                failed += 1
                note(f"{text[:60]!r} was not drawn: {error}", False)
    if failed:
        raise click.ClickException(f"{failed} of {len(prompt_texts)} prompts were not drawn")


def draw_each(writer: ImageWriter, prompt: str, seeds: range, output: Output, as_json: bool) -> None:
    """Draw and write the images of a prompt, one for each seed."""
    progress = FileProgress(len(seeds), writer.quiet or len(seeds) == 1 or sys.stderr.isatty())
    for number, seed in enumerate(seeds, 1):
        target = output if len(seeds) == 1 else Output(numbered(output.path, number), numbered=True)
        drawing = writer.draw(prompt, seed, target.path)
        report_output(writer.save(drawing, target), drawing, as_json)
        progress.step()


def draw_grid(writer: ImageWriter, prompt: str, seeds: range, output: Output, as_json: bool) -> None:
    """Draw the images of a prompt, one for each seed, into one contact sheet. If this is interrupted, the
    sheet of the finished images is written.
    """
    sheet, progress = ContactSheet(len(seeds)), FileProgress(len(seeds), writer.quiet or sys.stderr.isatty())
    try:
        for seed in seeds:
            sheet.add(writer.draw(prompt, seed, output.path))
            progress.step()
    finally:
        if len(sheet):
            drawing = sheet.drawing()
            path = writer.save(drawing, output)
            report_output(path, drawing, as_json)
        if 0 < len(sheet) < len(seeds):
            note(f"{len(sheet)} of {len(seeds)} images were drawn, and are saved in {path}", False)


def check_same_bundle(edge: SeedEdge, record: Record, source: str) -> None:
    """Check that the bundle is the one an image was drawn by.

    Raises:
        click.ClickException: the image was drawn by another bundle.
    """
    from seed_edge.image_metadata import bundle_hash

    if bundle_hash(edge.bundle) != record.bundle_hash:
        raise click.ClickException(
            f"{source} was drawn by the bundle {record.bundle} ({record.bundle_hash[:10]}), not by "
            f"{edge.bundle.path}; give that bundle with --bundle"
        )


def with_recorded_options(writer: ImageWriter, record: Record) -> ImageWriter:
    """Return the writer with the diffusion settings of a record, except those given on the command line."""
    options = writer.options
    recorded = {name: getattr(record, name) for name in ("steps", "guidance", "scheduler", "guided_between")}
    missing = {name: value for name, value in recorded.items() if getattr(options, name) is None}
    return dataclasses.replace(writer, options=dataclasses.replace(options, **missing))


def redraw(
    source: str,
    output: str | None,
    overwrite: bool,
    diffusion: dict[str, Any],
    saving: dict[str, Any],
    runtime: RuntimeOptions,
    as_json: bool,
) -> None:
    """Draw the images whose metadata the image file `source` holds again, from their codes."""
    from seed_edge.image_metadata import read_record

    record = read_record(source)
    target = resolve_output(output, prompt_file_name(record.prompt or Path(source).stem), overwrite, runtime)
    check_output(target, runtime, source)
    with runtime.open_bundle() as edge:
        check_same_bundle(edge, record, source)
        negative = record.negative or None
        writer = image_writer(
            edge, runtime, diffusion, saving, temperature=record.temperature, negative=negative
        )
        redraw_record(with_recorded_options(writer, record), record, target, as_json)


def redraw_record(writer: ImageWriter, record: Record, output: Output, as_json: bool) -> None:
    """Draw the images of a record from their codes."""
    if len(record.drawn) > 1:
        check_grid(len(record.drawn), writer.drawn_side(), output.path)
    sheet = ContactSheet(len(record.drawn))
    for drawn in record.drawn:
        sheet.add(writer.render(drawn.codes, drawn.seed, output.path, record.prompt))
    drawing = sheet.drawing()
    report_output(writer.save(drawing, output), drawing, as_json)
