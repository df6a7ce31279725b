"""Commands about bundles themselves: to make them, to check them, to time them."""

from __future__ import annotations

from pathlib import Path

import click

from seed_edge.commands.common import (
    COUNT,
    TEXT,
    bundle_option,
    choose,
    device_option,
    json_option,
    need,
    note,
    option,
    print_json,
    print_path,
    quiet_option,
)


@click.command()
@click.option(
    "--ckpt",
    type=click.Path(path_type=Path),
    help="A run of `train`, SEED-2's tokenizer, or a bundle that gets another --llm.  [default: the embedded bundle]",
)
@click.option("--vit", type=click.Path(path_type=Path), help="eva_vit_g.pth, where --ckpt does not hold it.")
@click.option("--llm", type=click.Path(path_type=Path), help="LLaMA folder.  [default: that of the run]")
@click.option("--lora", type=click.Path(path_type=Path), help="PEFT folder, merged into the LLaMA.")
@click.option("--diffusion", type=click.Path(path_type=Path), help="stable-diffusion-2-1-unclip folder.")
@click.option("--template", help="Prompts the LLaMA knows: vicuna, llama2 or plain.  [default: told from it]")
@click.option("--resize-filter", default="bilinear", show_default=True, help="For SEED-2: bilinear or bicubic.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Bundle to write.")
@click.option("--name", type=TEXT, help="Name of the bundle.  [default: that of --out]")
@click.option("--weight-type", default="Q8_0", show_default=True, help="Of the language model: F16, Q8_0, Q4_K_M, ...")
@click.option("--image-weights", default="fp16", show_default=True, help="How graphs store weights: fp32, fp16 or int8.")
@click.option("--decoder-weights", help="The same for the decoder, which can do with less.  [default: as --image-weights]")
@click.option("--photo", "photos", multiple=True, type=click.Path(path_type=Path), help="Also compare codes on this image.")
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
@click.option("--replace", is_flag=True, help="Replace the bundle at --out.")
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
    replace: bool,
    quiet: bool,
) -> None:
    """Turn checkpoints into a bundle, and prove that it gives the same numbers."""
    need("export", "torch", "diffusers", "onnx", "onnxscript", "gguf", "sentencepiece", "safetensors", "transformers")
    from seed_edge.bundle import EMBEDDED
    from seed_edge.export.export_bundle import ExportOptions, Parts, export_bundle
    from seed_edge.export.gguf_quantize import weight_types
    from seed_edge.export.onnx_storage import STORAGE
    from seed_edge.preprocess import FILTERS
    from seed_edge.prompts import TEMPLATES
    from seed_edge.runtime.threads import available_cores

    if template is not None:
        choose("--template", template, tuple(TEMPLATES))
    choose("--weight-type", weight_type, weight_types())
    choose("--image-weights", image_weights, STORAGE)
    choose("--decoder-weights", decoder_weights or image_weights, STORAGE)
    choose("--resize-filter", resize_filter, tuple(FILTERS))
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
        replace=replace,
    )
    export_bundle(Parts(ckpt or EMBEDDED, vit, llm, lora, diffusion), out, options, lambda text: note(text, quiet))
    print_path(out)


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
def verify(bundle: Path | None) -> None:
    """Check a bundle's hashes, and that its graphs give what they gave where it was made."""
    from seed_edge.bundle import Bundle
    from seed_edge.runtime.onnx_session import choose_device
    from seed_edge.runtime.selftest import verify

    click.echo(verify(Bundle.open(bundle), choose_device("cpu")))


@click.command()
@bundle_option
@device_option
@click.option("--tries", type=COUNT, default=5, show_default=True, help="Of each stage; the median counts.")
@json_option
@quiet_option
def bench(bundle: Path | None, device: str, tries: int, as_json: bool, quiet: bool) -> None:
    """Time every stage here, beside the least time it could take on this machine."""
    from seed_edge import bench
    from seed_edge.runtime.onnx_session import DEVICES, choose_device

    choose("--device", device, DEVICES)
    found = bench.bench(bundle, choose_device(device), tries, lambda text: note(f"timing: {text}", quiet))
    if as_json:
        print_json(found)
    else:
        click.echo(bench.table(found))
