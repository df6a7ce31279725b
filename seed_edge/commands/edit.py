"""The command `edit`."""

from __future__ import annotations

from typing import Any

import click

from seed_edge.commands.common import (
    TEXT,
    RuntimeOptions,
    json_option,
    max_pixels_option,
    present,
    runtime_options,
)
from seed_edge.commands.image_output import (
    check_output,
    folder_or_file,
    overwrite_option,
    prompt_file_name,
    resolve_output,
    with_diffusion_options,
    with_save_options,
)
from seed_edge.commands.image_writer import (
    check_stdout_is_free,
    image_writer,
    new_seed,
    report_output,
    seed_option,
    temperature_option,
    without_display,
)


@click.command()
@click.argument("image", type=click.Path())
@click.argument("instruction", type=TEXT)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help=(
        "Image to write; - for stdout; FOLDER/ for an image in a folder.  "
        "[default: named after the instruction]"
    ),
)
@overwrite_option
@seed_option
@temperature_option
@with_diffusion_options
@with_save_options
@max_pixels_option
@runtime_options
@json_option
def edit(
    image: str,
    instruction: str,
    output: str | None,
    overwrite: bool,
    seed: int | None,
    temperature: float | None,
    diffusion: dict[str, Any],
    saving: dict[str, Any],
    max_pixels: int | None,
    runtime: RuntimeOptions,
    as_json: bool,
) -> None:
    """Edit IMAGE by INSTRUCTION, such as "make the fox blue"."""
    from seed_edge.preprocess import open_image

    saving = without_display(saving) if as_json else saving
    check_stdout_is_free(folder_or_file(output)[1], as_json)
    target = resolve_output(output, prompt_file_name(instruction), overwrite, runtime)
    check_output(target, runtime, image)
    source = open_image(image, **present(max_pixels=max_pixels))
    seed = new_seed(runtime) if seed is None else seed
    with runtime.open_bundle() as edge:
        writer = image_writer(edge, runtime, diffusion, saving, temperature=temperature)
        drawing = writer.edit(source, instruction, seed, target.path)
        path = writer.save(drawing, target)
    report_output(path, drawing, as_json)
