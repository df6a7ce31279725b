"""Commands that make pictures."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import click

from seed_edge.commands.common import Progress, bundle_option, device_option, json_option, note, opened, quiet_option
from seed_edge.commands.pictures import (
    LATENTS,
    check_output,
    free_name,
    kept_latents,
    read_latents,
    save_picture,
    walk_of,
    with_diffusion_options,
)
from seed_edge.errors import CodesError

CODES_FILE_LIMIT = 1 << 20


@click.command()
@click.argument("prompt")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Picture to write.  [default: made of the prompt]")
@click.option("--seed", type=click.IntRange(0), help="Same seed, same picture.  [default: a new one, said on stderr]")
@click.option("--temperature", type=click.FloatRange(0), help="Higher varies more, 0 not at all.  [default: the bundle's]")
@with_diffusion_options
@bundle_option
@device_option
@json_option
@quiet_option
def draw(
    prompt: str,
    output: Path | None,
    seed: int | None,
    temperature: float | None,
    walk: dict[str, Any],
    bundle: Path | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Draw a picture of PROMPT."""
    import dataclasses

    path = output or free_name(prompt)
    check_output(path)
    if seed is None:
        seed = secrets.randbelow(2**31)
        note(f"seed: {seed}", quiet)
    with opened(bundle, device, quiet) as edge:
        sampling = edge.bundle.language.sampling
        options = walk_of(edge, walk)
        edge.require_decoder()
        if temperature is not None:
            sampling = dataclasses.replace(sampling, temperature=temperature)
        with Progress("codes", quiet) as progress:
            codes = edge.draw_codes(prompt, seed=seed, sampling=sampling, progress=progress)
        with Progress("steps", quiet) as progress, kept_latents(path) as keep:
            picture = edge.decode(codes, seed=seed, options=options, progress=progress, keep=keep)
        save_picture(picture, path)
    record = {"image": str(path), "prompt": prompt, "seed": seed, "codes": codes.tolist()}
    click.echo(json.dumps(record, ensure_ascii=False) if as_json else str(path))


@click.command()
@click.argument("codes", type=click.Path(allow_dash=True))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Picture to write.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="For decoders that start from noise.")
@with_diffusion_options
@bundle_option
@device_option
@quiet_option
def decode(
    codes: str,
    output: Path,
    seed: int,
    walk: dict[str, Any],
    bundle: Path | None,
    device: str,
    quiet: bool,
) -> None:
    """Turn CODES back into a picture: a file of `encode` output, or - for stdin.

    A file of latents (.npy), which `draw` leaves behind when its last stage fails, is finished likewise.
    """
    check_output(output)
    latents = read_latents(Path(codes)) if Path(codes).suffix == LATENTS else None
    numbers = parse_codes(read_codes(codes), codes) if latents is None else []
    with opened(bundle, device, quiet) as edge:
        options = walk_of(edge, walk)
        if latents is not None:
            picture = edge.develop(latents, tiled=walk["tiled"])
        else:
            with Progress("steps", quiet) as progress, kept_latents(output) as keep:
                picture = edge.decode(numbers, seed=seed, options=options, progress=progress, keep=keep)
        save_picture(picture, output)
    click.echo(str(output))


def read_codes(name: str) -> str:
    """Text of a codes file, or of stdin for `-`.

    Raises:
        CodesError: it cannot be read, is no text, or is far too large.
    """
    try:
        with click.open_file(name, "rb") as file:  # - is stdin
            data: bytes = file.read(CODES_FILE_LIMIT + 1)
        if len(data) > CODES_FILE_LIMIT:
            raise CodesError(f"{name} is over {CODES_FILE_LIMIT:,} bytes; one image has a few hundred")
        return data.decode()
    except OSError as error:
        raise CodesError(f"{name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise CodesError(f"{name} is no text; give a file that `seed-edge encode` wrote") from None


def parse_codes(text: str, name: str) -> list[int]:
    """Codes of one image: JSON with `codes`, a JSON list, or numbers with spaces between.

    Raises:
        CodesError: none of these.
    """
    try:
        value = json.loads(text)
        value = value.get("codes") if isinstance(value, dict) else value
    except ValueError:
        value = [int(word) if word.lstrip("-").isdecimal() else None for word in text.split()]
    if not isinstance(value, list) or not value or not all(type(code) is int for code in value):
        raise CodesError(f"{name} holds no codes; give a file that `seed-edge encode --json` wrote, of one image")
    return value
