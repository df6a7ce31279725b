"""The commands `decode` and `reconstruct`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seed_edge.commands.codes_input import parse_code_lists, read_codes, read_latents
from seed_edge.commands.common import (
    SEED,
    RuntimeOptions,
    max_pixels_option,
    present,
    print_path,
    runtime_options,
)
from seed_edge.commands.image_output import (
    LATENTS,
    Output,
    check_output,
    numbered,
    overwrite_option,
    resolve_output,
    show_image,
    with_diffusion_options,
    with_save_options,
    write_image,
)
from seed_edge.commands.image_writer import (
    ImageWriter,
    image_writer,
    output_option,
    report_output,
)
from seed_edge.output_checks import is_stdout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

diffusion_seed_option = click.option(
    "-s", "--seed", type=SEED, default=0, show_default=True, help="Random seed of a diffusion."
)


@click.command()
@click.argument("image", type=click.Path())
@output_option
@overwrite_option
@diffusion_seed_option
@with_diffusion_options
@with_save_options
@max_pixels_option
@runtime_options
def reconstruct(
    image: str,
    output: str,
    overwrite: bool,
    seed: int,
    diffusion: dict[str, Any],
    saving: dict[str, Any],
    max_pixels: int | None,
    runtime: RuntimeOptions,
) -> None:
    """Encode IMAGE and decode its codes: what the language model sees of it."""
    from seed_edge.preprocess import open_image

    target = resolve_output(output, Path(f"{Path(image).stem}.png"), overwrite, runtime)
    check_output(target, runtime, image)
    source = open_image(image, **present(max_pixels=max_pixels))
    with runtime.open_bundle() as edge:
        writer = image_writer(edge, runtime, diffusion, saving)
        drawing = writer.render(edge.encode([source])[0].tolist(), seed, target.path)
        path = writer.save(drawing, target)
    report_output(path, drawing, as_json=False)


@click.command()
@click.argument("codes", type=click.Path(allow_dash=True))
@output_option
@overwrite_option
@diffusion_seed_option
@with_diffusion_options
@with_save_options
@runtime_options
def decode(
    codes: str,
    output: str,
    overwrite: bool,
    seed: int,
    diffusion: dict[str, Any],
    saving: dict[str, Any],
    runtime: RuntimeOptions,
) -> None:
    """Decode CODES, the output of `encode`, to an image.

    CODES is a file, or - for stdin. The images of several JSON lines are written as NAME-1.png, NAME-2.png,
    and so on. CODES can also be a file of latents (.npy), which `draw` writes if the VAE decoder fails.
    """
    default = Path("decoded.png" if codes == "-" else f"{Path(codes).stem}.png")
    target = resolve_output(output, default, overwrite, runtime)
    check_output(target, runtime, *([codes] if codes != "-" else []))
    latents = read_latents(Path(codes)) if Path(codes).suffix == LATENTS else None
    code_lists = parse_code_lists(read_codes(codes), codes) if latents is None else []
    if len(code_lists) > 1 and is_stdout(target.path):
        raise click.UsageError(
            f"stdout takes one image, {codes} holds the codes of {len(code_lists)}; choose another -o"
        )
    with runtime.open_bundle() as edge:
        writer = image_writer(edge, runtime, diffusion, saving)
        if latents is not None:
            decode_latents(writer, latents, diffusion["tiled"], target)
        for number, code_list in enumerate(code_lists, 1):
            image_output = (
                target if len(code_lists) == 1 else Output(numbered(target.path, number), numbered=True)
            )
            drawing = writer.render(code_list, seed, image_output.path)
            report_output(writer.save(drawing, image_output), drawing, as_json=False)


def decode_latents(
    writer: ImageWriter, latents: NDArray[np.float32], tiled: bool | None, output: Output
) -> None:
    """Decode the latents of a diffusion, and write the image without provenance, which latents do not
    contain.
    """
    from seed_edge.runtime.drawing import resized

    image = resized(writer.edge.decode_latents(latents, tiled=tiled), writer.side)
    path = write_image(image, output, None)
    if not is_stdout(path):
        show_image(image, writer.show)
        print_path(path)
