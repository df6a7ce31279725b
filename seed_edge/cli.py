"""The command line: parse, call, print. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seed_edge import __version__
from seed_edge.cli_train import evaluate, tokenize, train
from seed_edge.console import (
    bundle_option,
    choose,
    device_option,
    given,
    json_option,
    max_pixels_option,
    need,
    note,
    opened,
    quiet_option,
)
from seed_edge.errors import CodesError, SeedEdgeError

if TYPE_CHECKING:
    from PIL.Image import Image

    from seed_edge.runtime.pipeline import SeedEdge
    from seed_edge.runtime.unclip import DiffusionOptions

SYSTEM_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
"""What the system, not the program, is at fault for: a full disk, permissions, a path that is not there."""

CODES_FILE_LIMIT = 1 << 20
LATENTS = ".npy"
PICTURE_TYPES = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}


class Commands(click.Group):
    """Turns errors a user can put right into one line and exit code 1; anything else is a bug, with its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SeedEdgeError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno in SYSTEM_FAULTS:
                raise click.ClickException(f"{error.filename or 'a file'}: {error.strerror}") from error
            raise


diffusion_options = (
    click.option("--fast", is_flag=True, default=None, help="Of a diffusion: a third of the steps, by a better solver."),
    click.option("--steps", type=click.IntRange(2, 500), help="Of a diffusion.  [default: the bundle's]"),
    click.option("--guidance", type=click.FloatRange(1), help="Of a diffusion; 1 for none.  [default: the bundle's]"),
    click.option("--scheduler", help="Of a diffusion: pndm, ddim or dpm++.  [default: the bundle's]"),
    click.option(
        "--tiled/--whole", default=None, help="Last stage in tiles, in less memory.  [default: where memory is short]"
    ),
)


def with_diffusion_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a diffusion to a command, which gets them together, as `walk`."""

    @functools.wraps(command)
    def collected(**options: Any) -> None:
        walk = {name: options.pop(name) for name in ("fast", "steps", "guidance", "scheduler", "tiled")}
        command(walk=walk, **options)

    for option in reversed(diffusion_options):
        collected = option(collected)
    return collected


def walk_of(edge: SeedEdge, walk: dict[str, Any]) -> DiffusionOptions:
    """Options of a diffusion; refused for a bundle that has none."""
    import dataclasses

    from seed_edge.runtime.unclip import FAST, DiffusionOptions

    if edge.bundle.manifest.kind == "pixels" and any(given is not None for given in walk.values()):
        raise click.ClickException(
            "this bundle draws in one pass; leave out --fast, --steps, --guidance, --scheduler, --tiled"
        )
    chosen = {name: value for name, value in walk.items() if name != "fast" and value is not None}
    return dataclasses.replace(FAST if walk["fast"] else DiffusionOptions(), **chosen)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="seed-edge")
def cli() -> None:
    """See and draw with one small model, offline.

    Images become codes that a language model reads (caption) and writes (draw).
    """


def save_picture(image: Image, path: Path) -> None:
    """Write a picture so that it appears under its name only when complete."""
    kind = PICTURE_TYPES.get(path.suffix.lower())
    if kind is None:
        raise click.ClickException(f"{path}: pictures are written as {', '.join(PICTURE_TYPES)}; choose one of these")
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise click.ClickException(f"{path}: the folder cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(handle, "wb") as file:
            image.save(file, kind, quality=95)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)
        os.replace(partial, path)
    except BaseException as error:
        Path(partial).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise click.ClickException(f"{path} cannot be written ({error.strerror})") from error
        raise


def check_output(path: Path) -> None:
    """Refuse an output that cannot be written, before any work."""
    if path.suffix.lower() not in PICTURE_TYPES:
        raise click.ClickException(f"{path}: pictures are written as {', '.join(PICTURE_TYPES)}; choose one of these")
    if path.is_dir():
        raise click.ClickException(f"{path} is a folder; give a file name")
    if not path.parent.is_dir():
        raise click.ClickException(f"{path.parent}: no such folder; make it first, or choose another -o")
    if not os.access(path.parent, os.W_OK):
        raise click.ClickException(f"{path.parent}: the folder cannot be written; choose another -o")


def free_name(prompt: str) -> Path:
    """A file name made of the prompt that does not exist yet: `a-red-fox.png`, `a-red-fox-2.png`, ..."""
    stem = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60] or "picture"
    return unused(Path(f"{stem}.png"))


def unused(path: Path) -> Path:
    """`path`, or with the first number that makes it a name of no file."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


@cli.command()
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


@cli.command()
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


class Progress:
    """A counter on stderr that rewrites its line; silent when quiet or when stderr is no terminal."""

    def __init__(self, what: str, quiet: bool) -> None:
        self.what, self.shown = what, not quiet and sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self.shown:
            click.echo(f"\r{self.what}: {done}/{total}", err=True, nl=False)

    def __exit__(self, *_: object) -> None:
        if self.shown:
            click.echo("\r\033[K", err=True, nl=False)


@cli.command()
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


@cli.command()
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


@contextmanager
def kept_latents(output: Path) -> Iterator[Callable[[Any], None]]:
    """Keeps the latents of a picture in a file beside it while the last stage works, which may run out of memory."""
    path, failed = unused(output.with_suffix(LATENTS)), False

    def keep(latents: Any) -> None:
        import numpy as np

        np.save(path, latents)

    try:
        yield keep
    except (SeedEdgeError, MemoryError) as error:
        failed = True
        if path.exists():
            again = f"seed-edge decode {path} -o {output} --tiled"
            raise click.ClickException(f"{error}; what was drawn is kept: try `{again}` with the same --bundle") from error
        raise
    finally:
        if not failed:
            path.unlink(missing_ok=True)


def read_latents(path: Path) -> Any:
    """Latents that `kept_latents` kept.

    Raises:
        CodesError: the file is missing or holds no array.
    """
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CodesError(f"{path} cannot be read as latents ({error}); give a file that `draw` kept") from error


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


@cli.command()
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
@click.option("--name", help="Name of the bundle.  [default: that of --out]")
@click.option("--weight-type", default="Q8_0", show_default=True, help="Of the language model: F16, Q8_0, Q4_K_M, ...")
@click.option("--image-weights", default="fp16", show_default=True, help="How graphs store weights: fp32, fp16 or int8.")
@click.option("--photo", "photos", multiple=True, type=click.Path(path_type=Path), help="Also compare codes on this image.")
@click.option("--licence", default="", help="What the weights may be used for; goes into the manifest.")
@click.option("--sources", type=click.Path(path_type=Path), help="JSON list of name, licence, role; into the manifest.")
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
    photos: tuple[Path, ...],
    licence: str,
    sources: Path | None,
    replace: bool,
    quiet: bool,
) -> None:
    """Turn checkpoints into a bundle, and prove that it gives the same numbers."""
    need("export", "torch", "diffusers", "onnx", "onnxscript", "gguf", "sentencepiece", "safetensors", "transformers")
    from seed_edge.bundle import EMBEDDED
    from seed_edge.export.assemble import ExportOptions, Parts, export_bundle
    from seed_edge.export.quantize import weight_types
    from seed_edge.export.weights import STORAGE
    from seed_edge.preprocess import FILTERS
    from seed_edge.runtime.threads import available_cores

    choose("--weight-type", weight_type, weight_types())
    choose("--image-weights", image_weights, STORAGE)
    choose("--resize-filter", resize_filter, tuple(FILTERS))
    options = ExportOptions(
        name=name or out.name,
        weight_type=weight_type,
        image_weights=image_weights,
        resize_filter=resize_filter,
        template=template,
        photos=photos,
        threads=available_cores(),
        licence=licence,
        sources=sources,
        replace=replace,
    )
    export_bundle(Parts(ckpt or EMBEDDED, vit, llm, lora, diffusion), out, options, lambda text: note(text, quiet))
    click.echo(str(out))


@cli.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
def verify(bundle: Path | None) -> None:
    """Check a bundle's hashes, and that its graphs give what they gave where it was made."""
    from seed_edge.bundle import Bundle
    from seed_edge.runtime.selftest import verify
    from seed_edge.runtime.sessions import choose_device

    click.echo(verify(Bundle.open(bundle), choose_device("cpu")))


@cli.command()
@bundle_option
@device_option
@click.option("--tries", type=click.IntRange(1), default=5, show_default=True, help="Of each stage; the median counts.")
@json_option
@quiet_option
def bench(bundle: Path | None, device: str, tries: int, as_json: bool, quiet: bool) -> None:
    """Time every stage here, beside the least time it could take on this machine."""
    from seed_edge import bench
    from seed_edge.runtime.sessions import choose_device

    found = bench.bench(bundle, choose_device(device), tries, lambda text: note(f"timing: {text}", quiet))
    click.echo(json.dumps(found) if as_json else bench.table(found))


for command in (train, tokenize, evaluate):
    cli.add_command(command)
