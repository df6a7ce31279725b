"""Commands that look at pictures."""

from __future__ import annotations

import json
from pathlib import Path

import click

from seed_edge.commands.common import (
    bundle_option,
    device_option,
    given,
    json_option,
    max_pixels_option,
    opened,
    quiet_option,
)


@click.command()
@click.argument("image", type=click.Path())
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0: the likeliest words.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Used with --temperature.")
@click.option("--beams", type=click.IntRange(1, 16), help="Captions followed side by side.  [default: the bundle's]")
@max_pixels_option
@bundle_option
@device_option
@json_option
@quiet_option
def caption(
    image: str,
    temperature: float,
    seed: int,
    beams: int | None,
    max_pixels: int | None,
    bundle: Path | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Describe IMAGE in words."""
    from seed_edge.preprocess import open_image

    picture = open_image(image, **given(max_pixels=max_pixels))
    with opened(bundle, device, quiet) as edge:
        text = edge.caption(picture, temperature=temperature, seed=seed, beams=beams)
    click.echo(json.dumps({"image": image, "caption": text}, ensure_ascii=False) if as_json else text)


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path())
@max_pixels_option
@bundle_option
@device_option
@json_option
@quiet_option
def encode(
    images: tuple[str, ...], max_pixels: int | None, bundle: Path | None, device: str, as_json: bool, quiet: bool
) -> None:
    """Turn IMAGES into codes, one line each."""
    from seed_edge.preprocess import open_image

    with opened(bundle, device, quiet) as edge:
        for image in images:
            codes = edge.encode([open_image(image, **given(max_pixels=max_pixels))])[0].tolist()
            click.echo(json.dumps({"image": image, "codes": codes}) if as_json else " ".join(map(str, codes)))


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.argument("question")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0: the likeliest words.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Used with --temperature.")
@max_pixels_option
@bundle_option
@device_option
@json_option
@quiet_option
def ask(
    images: tuple[str, ...],
    question: str,
    temperature: float,
    seed: int,
    max_pixels: int | None,
    bundle: Path | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Answer QUESTION about one or several IMAGES."""
    from seed_edge.preprocess import open_image

    pictures = [open_image(image, **given(max_pixels=max_pixels)) for image in images]
    with opened(bundle, device, quiet) as edge:
        text = edge.ask(pictures, question, temperature=temperature, seed=seed)
    record = {"images": list(images), "question": question, "answer": text}
    click.echo(json.dumps(record, ensure_ascii=False) if as_json else text)
