"""The commands `export`, `verify` and `bench`."""

from __future__ import annotations

from pathlib import Path

import click

from seed_edge.commands.common import (
    COUNT,
    PROMPT_TEMPLATES,
    RESIZE_FILTERS,
    STORAGE_TYPES,
    TEXT,
    bundle_option,
    check_choice,
    device_option,
    json_option,
    note,
    option,
    output_option,
    overwrite_option,
    print_json,
    print_path,
    quiet_option,
    require_extra,
)

WEIGHT_TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M")
"""Common weight types, for completion; the installed llama.cpp defines the full list."""


def complete_weight_type(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete common weight types that begin with `incomplete`, in any case."""
    return [name for name in WEIGHT_TYPES if name.startswith(incomplete.upper())]


@click.command()
@click.option(
    "--ckpt",
    type=click.Path(path_type=Path),
    help=(
        "A training run, a SEED-2 tokenizer, or a bundle that gets another --llm.  [default: the "
        "embedded bundle]"
    ),
)
@click.option("--vit", type=click.Path(path_type=Path), help="eva_vit_g.pth, if --ckpt does not contain it.")
@click.option(
    "--llm", type=click.Path(path_type=Path), help="LLaMA folder.  [default: the language model of the run]"
)
@click.option("--lora", type=click.Path(path_type=Path), help="PEFT adapter folder, merged into the LLaMA.")
@click.option("--diffusion", type=click.Path(path_type=Path), help="stable-diffusion-2-1-unclip folder.")
@click.option(
    "--template",
    type=click.Choice(PROMPT_TEMPLATES),
    help="Prompt template of the LLaMA.  [default: derived from the checkpoint]",
)
@click.option(
    "--resize-filter",
    type=click.Choice(RESIZE_FILTERS),
    default="bilinear",
    show_default=True,
    help="Resize filter of SEED-2's preprocessing.",
)
@output_option("Bundle to write.", required=True)
@click.option("--name", type=TEXT, help="Name of the bundle.  [default: name of the output folder]")
@click.option(
    "--weight-type",
    default="Q8_0",
    show_default=True,
    shell_complete=complete_weight_type,
    help="GGUF weight type of the language model: F16, Q8_0, Q4_K_M, ...",
)
@click.option(
    "--image-weights",
    type=click.Choice(STORAGE_TYPES),
    default="fp16",
    show_default=True,
    help="Weight type of the ONNX graphs.",
)
@click.option(
    "--decoder-weights",
    type=click.Choice(STORAGE_TYPES),
    help="Weight type of the decoder.  [default: as --image-weights]",
)
@click.option(
    "--photo",
    "photos",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Also compare codes on this image; may be repeated.",
)
@option(
    "--license",
    "license_text",
    aliases=["--licence"],
    type=TEXT,
    default="",
    help="License of the weights, stored in the manifest.",
)
@click.option(
    "--sources",
    type=click.Path(path_type=Path),
    help="JSON list of objects with name, license and role, stored in the manifest.",
)
@overwrite_option("Replace the bundle at --output.")
@quiet_option
def export(
    ckpt: Path | None,
    vit: Path | None,
    llm: Path | None,
    lora: Path | None,
    diffusion: Path | None,
    template: str | None,
    resize_filter: str,
    out: Path,
    name: str | None,
    weight_type: str,
    image_weights: str,
    decoder_weights: str | None,
    photos: tuple[Path, ...],
    license_text: str,
    sources: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Export checkpoints to a bundle, and compare its outputs with PyTorch's."""
    require_extra(
        "export",
        "torch",
        "diffusers",
        "onnx",
        "onnxscript",
        "gguf",
        "sentencepiece",
        "safetensors",
        "transformers",
    )
    from seed_edge.bundle import EMBEDDED
    from seed_edge.export.export_bundle import ExportOptions, Parts, export_bundle
    from seed_edge.export.gguf_quantize import weight_types
    from seed_edge.runtime.threads import available_cores

    check_choice("--weight-type", weight_type, weight_types())
    options = ExportOptions(
        name=name or out.name,
        weight_type=weight_type,
        image_weights=image_weights,
        decoder_weights=decoder_weights,
        resize_filter=resize_filter,
        template=template,
        photos=photos,
        threads=available_cores(),
        license=license_text,
        sources=sources,
        replace=overwrite,
    )
    export_bundle(
        Parts(ckpt or EMBEDDED, vit, llm, lora, diffusion), out, options, lambda text: note(text, quiet)
    )
    print_path(out)


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
def verify(bundle: Path | None) -> None:
    """Check a bundle's hashes, and compare its outputs with those recorded at export."""
    from seed_edge.bundle import Bundle
    from seed_edge.runtime.onnx_session import choose_device
    from seed_edge.runtime.selftest import verify

    click.echo(verify(Bundle.open(bundle), choose_device("cpu")))


@click.command()
@bundle_option
@device_option
@option(
    "--repeats",
    aliases=["--tries"],
    type=COUNT,
    default=5,
    show_default=True,
    help="Runs of each stage; the median is reported.",
)
@json_option
@quiet_option
def bench(bundle: Path | None, device: str, repeats: int, as_json: bool, quiet: bool) -> None:
    """Time every stage, and compare with the lower bound of this machine."""
    from seed_edge import bench
    from seed_edge.runtime.onnx_session import choose_device

    result = bench.bench(bundle, choose_device(device), repeats, lambda text: note(f"timing: {text}", quiet))
    if as_json:
        print_json(result)
    else:
        click.echo(bench.format_table(result))
