"""The commands `draw`, `edit`, `reconstruct` and `decode`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seed_edge.commands.caption_output import FileProgress
from seed_edge.commands.codes_input import lines_of, parse_codes, read_codes, read_latents
from seed_edge.commands.common import (
    MAX_SEED,
    SEED,
    TEMPERATURE,
    TEXT,
    Progress,
    RuntimeOptions,
    given,
    json_option,
    max_pixels_option,
    note,
    option,
    print_json,
    print_path,
    runtime_options,
)
from seed_edge.commands.image_output import (
    LATENTS,
    Grid,
    Output,
    check_grid,
    check_output,
    diffusion_options_of,
    kept_latents,
    name_of,
    numbered,
    overwrite_option,
    resized,
    save_picture,
    show_picture,
    with_diffusion_options,
    with_finish_options,
)
from seed_edge.errors import PromptError
from seed_edge.output_checks import is_stdout

if TYPE_CHECKING:
    from PIL.Image import Image

    from seed_edge.image_metadata import Record
    from seed_edge.manifest import Sampling
    from seed_edge.runtime.pipeline import SeedEdge
    from seed_edge.runtime.unclip import DiffusionOptions

MAX_PICTURES_AT_ONCE = 1000

output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Image to write; - for stdout."
)
seed_option = click.option("-s", "--seed", type=SEED, help="Random seed.  [default: a random one, printed on stderr]")
temperature_option = click.option(
    "--temperature",
    type=TEMPERATURE,
    help="Sampling temperature; 0 takes the most likely codes.  [default: set by the bundle]",
)


@dataclasses.dataclass(frozen=True)
class ImageWriter:
    """How the pictures of one call are made and kept."""

    edge: SeedEdge
    options: DiffusionOptions
    sampling: Sampling
    negative: str | None
    side: int | None
    """Of a saved picture, in pixels; None for what the bundle draws."""
    metadata: bool
    show: bool | None
    """Whether saved pictures are shown in the terminal; None where there is one."""
    quiet: bool

    def codes(self, prompt: str, seed: int) -> list[int]:
        """Codes of a prompt."""
        with Progress("codes", self.quiet) as progress:
            drawn = self.edge.draw_codes(prompt, seed=seed, negative=self.negative, sampling=self.sampling, progress=progress)
        return [int(code) for code in drawn]

    def picture(self, codes: Sequence[int], seed: int, path: Path) -> Image:
        """Picture of codes; what is half done is kept beside `path` where the last stage fails."""
        negative = self.edge.negative_codes(self.negative, seed=seed)
        with Progress("steps", self.quiet) as progress, kept_latents(path) as on_latents:
            picture = self.edge.decode(
                codes, seed=seed, options=self.options, negative=negative, progress=progress, on_latents=on_latents
            )
        return resized(picture, self.side)

    def save(self, picture: Image, output: Output, prompt: str, drawn: Sequence[tuple[int, Sequence[int]]]) -> Path:
        """Write a picture, with how it was made unless it is not to be told; return the name it got.

        Args:
            drawn: seed and codes of each picture in it.
        """
        path = save_picture(picture, output, self.record(prompt, drawn) if self.metadata else None)
        if not is_stdout(path):
            show_picture(picture, self.show)
        return path

    def drawn_side(self) -> int:
        """Pixels a side of a picture as it is saved."""
        return self.side or self.edge.bundle.manifest.output_size

    def record(self, prompt: str, drawn: Sequence[tuple[int, Sequence[int]]]) -> Record:
        """How it was made."""
        from seed_edge.image_metadata import Drawn, Record, bundle_hash

        manifest = self.edge.bundle.manifest
        diffusion: dict[str, Any] = {}
        if manifest.diffusion is not None:
            own, said = manifest.diffusion, self.options
            diffusion = {
                "steps": said.steps or own.steps,
                "guidance": own.guidance if said.guidance is None else said.guidance,
                "scheduler": said.scheduler or own.scheduler,
                "guided_between": said.guided_between,
            }
        return Record(
            prompt=prompt,
            drawn=tuple(Drawn(seed, tuple(codes)) for seed, codes in drawn),
            bundle=manifest.name,
            bundle_hash=bundle_hash(self.edge.bundle),
            negative=self.negative or "",
            temperature=self.sampling.temperature,
            **diffusion,
        )


def image_writer(
    edge: SeedEdge,
    engine: RuntimeOptions,
    diffusion: dict[str, Any],
    finish: dict[str, Any],
    *,
    temperature: float | None = None,
    best_of: int | None = None,
    negative: str | None = None,
) -> ImageWriter:
    """How pictures are made, from what was said on the command line; refuses what the bundle cannot do.

    Args:
        diffusion: see `with_diffusion_options`.
        finish: see `with_finish_options`.
    """
    from seed_edge.manifest import Sampling

    options = diffusion_options_of(edge, diffusion)
    edge.require_decoder()
    language = edge.bundle.manifest.language
    sampling = Sampling(0.0, 0, 1.0) if language is None else language.sampling
    if temperature is not None:
        sampling = dataclasses.replace(sampling, temperature=temperature)
    if best_of is not None:
        sampling = dataclasses.replace(sampling, best_of=best_of)
    return ImageWriter(edge, options, sampling, negative, quiet=engine.quiet, **finish)


@click.command()
@click.argument("prompt", required=False, type=TEXT)
@click.option("-p", "--prompt", "prompt_option", type=TEXT, help="Prompt, instead of the argument PROMPT.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Image to write; - for stdout.  [default: named after the prompt]"
)
@overwrite_option
@click.option(
    "-n", "--count", type=click.IntRange(1, MAX_PICTURES_AT_ONCE), default=1, show_default=True, help="Number of images."
)
@click.option("--grid", is_flag=True, help="Write all images into one contact sheet.")
@click.option("--prompts", type=click.Path(), help="File with one prompt per line, or - for stdin; -o is then a folder.")
@click.option("--from", "source", type=click.Path(), help="Image drawn by seed-edge: draw it again from its metadata.")
@click.option("--negative-prompt", "--negative", "negative", type=TEXT, help="Negative prompt.")
@seed_option
@temperature_option
@option(
    "--best-of",
    aliases=["--tries"],
    type=click.IntRange(1, 16),
    help="Number of candidates, of which the model's most likely one is kept.  [default: set by the bundle]",
)
@with_diffusion_options
@with_finish_options
@runtime_options
@json_option
def draw(
    prompt: str | None,
    prompt_option: str | None,
    output: Path | None,
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
    finish: dict[str, Any],
    engine: RuntimeOptions,
    as_json: bool,
) -> None:
    """Draw an image of PROMPT.

    With -n, the seed of each further image is one higher. The metadata of an image holds prompt, seed, codes and bundle, so
    that --from draws it again, and the mark of an AI-made image.
    """
    finish = unshown(finish) if as_json else finish
    if sum(value is not None for value in (prompt, prompt_option, prompts, source)) != 1:
        raise click.UsageError('give one of: a PROMPT such as "a red fox", -p PROMPT, --prompts FILE, --from IMAGE')
    prompt = prompt if prompt_option is None else prompt_option
    refuse_json_beside_picture(output, as_json)
    if output is not None and is_stdout(output) and count > 1 and not grid:
        raise click.UsageError("stdout takes one picture; add --grid, or choose another -o")
    if source is not None:
        from seed_edge.image_metadata import record_in

        record = record_in(source)
        target = Output(output or name_of(record.prompt or Path(source).stem), output is None, overwrite)
        check_output(target, engine, source)
        with engine.opened() as edge:
            refuse_other_bundle(edge, record, source)
            negative = record.negative or None
            brush = image_writer(edge, engine, diffusion, finish, temperature=record.temperature, negative=negative)
            draw_again(as_recorded(brush, record), record, target, as_json)
        return
    folder = output if prompts is not None else None
    if folder is not None and not folder.is_dir():
        raise click.ClickException(f"{folder}: no such folder; with --prompts, -o is a folder that exists")
    named = None if folder is not None or output is None else Output(output, count > 1 and not grid, overwrite)
    check_output(named or Output(name_of("", folder), free=True), engine, *([prompts] if prompts not in (None, "-") else []))
    asked = [prompt] if prompt is not None else list(lines_of(str(prompts)))
    seed = new_seed(engine) if seed is None else seed
    if seed + count - 1 > MAX_SEED:
        raise click.UsageError(f"--seed {seed} with -n {count} counts past 2**63 - 1; choose a lower seed")
    failed = 0
    with engine.opened() as edge:
        brush = image_writer(edge, engine, diffusion, finish, temperature=temperature, best_of=best_of, negative=negative)
        if grid:
            check_grid(count, brush.drawn_side(), (named or Output(name_of(""))).path)
        for text in asked:
            target = named or Output(name_of(text, folder), free=True)
            try:
                (draw_grid if grid else draw_each)(brush, text, range(seed, seed + count), target, as_json)
            except PromptError as error:
                if len(asked) == 1:
                    raise
                failed += 1
                note(f"{text[:60]!r} was not drawn: {error}", False)
    if failed:
        raise click.ClickException(f"{failed} of {len(asked)} prompts were not drawn")


def unshown(finish: dict[str, Any]) -> dict[str, Any]:
    """The same, with pictures shown only where that was asked for: stdout is for a program."""
    return finish | {"show": bool(finish["show"])}


def refuse_json_beside_picture(output: Path | None, as_json: bool) -> None:
    """Refuse JSON where the picture goes to stdout."""
    if as_json and output is not None and is_stdout(output):
        raise click.UsageError("stdout takes the picture and nothing else: leave out --json, or choose another -o")


def new_seed(engine: RuntimeOptions) -> int:
    """A seed nobody asked for, said so that the picture can be drawn again."""
    import secrets

    seed = secrets.randbelow(2**31)
    engine.note(f"seed: {seed}")
    return seed


def draw_each(brush: ImageWriter, prompt: str, seeds: range, output: Output, as_json: bool) -> None:
    """Draw and write the pictures of a prompt, one for each seed."""
    pace = FileProgress(len(seeds), brush.quiet or len(seeds) == 1 or sys.stderr.isatty())
    for number, seed in enumerate(seeds, 1):
        codes = brush.codes(prompt, seed)
        own = output if len(seeds) == 1 else Output(numbered(output.path, number), free=True)
        path = brush.save(brush.picture(codes, seed, own.path), own, prompt, [(seed, codes)])
        tell(path, prompt, [(seed, codes)], as_json)
        pace.step()


def draw_grid(brush: ImageWriter, prompt: str, seeds: range, output: Output, as_json: bool) -> None:
    """Draw the pictures of a prompt, one for each seed, and write them as one. Stopped, it keeps those that are drawn."""
    drawn: list[tuple[int, list[int]]] = []
    sheet, pace = Grid(len(seeds)), FileProgress(len(seeds), brush.quiet or sys.stderr.isatty())
    try:
        for seed in seeds:
            codes = brush.codes(prompt, seed)
            sheet.add(brush.picture(codes, seed, output.path))
            drawn.append((seed, codes))
            pace.step()
    finally:
        if drawn:
            path = brush.save(sheet.image(), output, prompt, drawn)
            tell(path, prompt, drawn, as_json)
        if 0 < len(drawn) < len(seeds):
            note(f"{len(drawn)} of {len(seeds)} pictures were drawn, and are kept in {path}", False)


def tell(path: Path, prompt: str, drawn: Sequence[tuple[int, Sequence[int]]], as_json: bool) -> None:
    """What was written, on stdout, unless the picture is there."""
    if is_stdout(path):
        return
    if not as_json:
        print_path(path)
        return
    seed, codes = drawn[0]
    record: dict[str, Any] = {"image": str(path), "prompt": prompt, "seed": seed, "codes": list(codes)}
    if len(drawn) > 1:
        record |= {"seed": [seed for seed, _ in drawn], "codes": [list(codes) for _, codes in drawn]}
    print_json(record)


def refuse_other_bundle(edge: SeedEdge, record: Record, source: str) -> None:
    """Refuse a bundle that is not the one a picture was drawn by."""
    from seed_edge.image_metadata import bundle_hash

    if bundle_hash(edge.bundle) != record.bundle_hash:
        raise click.ClickException(
            f"{source} was drawn by the bundle {record.bundle} ({record.bundle_hash[:10]}), not by {edge.bundle.path}; "
            "say where that is with --bundle"
        )


def as_recorded(brush: ImageWriter, record: Record) -> ImageWriter:
    """The brush with which a picture was drawn, but for what was said otherwise now."""
    said = brush.options
    recorded = {name: getattr(record, name) for name in ("steps", "guidance", "scheduler", "guided_between")}
    missing = {name: value for name, value in recorded.items() if getattr(said, name) is None}
    return dataclasses.replace(brush, options=dataclasses.replace(said, **missing))


def draw_again(brush: ImageWriter, record: Record, output: Output, as_json: bool) -> None:
    """Draw what a picture says it shows, from its codes."""
    if len(record.drawn) > 1:
        check_grid(len(record.drawn), brush.drawn_side(), output.path)
    sheet = Grid(len(record.drawn))
    for each in record.drawn:
        sheet.add(brush.picture(each.codes, each.seed, output.path))
    drawn = [(each.seed, each.codes) for each in record.drawn]
    tell(brush.save(sheet.image(), output, record.prompt, drawn), record.prompt, drawn, as_json)


@click.command()
@click.argument("image", type=click.Path())
@click.argument("instruction", type=TEXT)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Image to write; - for stdout.  [default: named after the instruction]",
)
@overwrite_option
@seed_option
@temperature_option
@with_diffusion_options
@with_finish_options
@max_pixels_option
@runtime_options
@json_option
def edit(
    image: str,
    instruction: str,
    output: Path | None,
    overwrite: bool,
    seed: int | None,
    temperature: float | None,
    diffusion: dict[str, Any],
    finish: dict[str, Any],
    max_pixels: int | None,
    engine: RuntimeOptions,
    as_json: bool,
) -> None:
    """Edit IMAGE by INSTRUCTION, such as "make the fox blue"."""
    from seed_edge.preprocess import open_image

    finish = unshown(finish) if as_json else finish
    target = Output(output or name_of(instruction), output is None, overwrite)
    refuse_json_beside_picture(output, as_json)
    check_output(target, engine, image)
    picture = open_image(image, **given(max_pixels=max_pixels))
    seed = new_seed(engine) if seed is None else seed
    with engine.opened() as edge:
        brush = image_writer(edge, engine, diffusion, finish, temperature=temperature)
        with Progress("codes", engine.quiet) as progress:
            before = edge.encode([picture])[0]
            codes = edge.edit_codes(before, instruction, seed=seed, sampling=brush.sampling, progress=progress).tolist()
        path = brush.save(brush.picture(codes, seed, target.path), target, instruction, [(seed, codes)])
    tell(path, instruction, [(seed, codes)], as_json)


@click.command()
@click.argument("image", type=click.Path())
@output_option
@overwrite_option
@click.option("-s", "--seed", type=SEED, default=0, show_default=True, help="Random seed of a diffusion.")
@with_diffusion_options
@with_finish_options
@max_pixels_option
@runtime_options
def reconstruct(
    image: str,
    output: Path,
    overwrite: bool,
    seed: int,
    diffusion: dict[str, Any],
    finish: dict[str, Any],
    max_pixels: int | None,
    engine: RuntimeOptions,
) -> None:
    """Encode IMAGE and decode its codes: what the language model sees of it."""
    from seed_edge.preprocess import open_image

    target = Output(output, overwrite=overwrite)
    check_output(target, engine, image)
    picture = open_image(image, **given(max_pixels=max_pixels))
    with engine.opened() as edge:
        brush = image_writer(edge, engine, diffusion, finish)
        codes = edge.encode([picture])[0].tolist()
        path = brush.save(brush.picture(codes, seed, output), target, "", [(seed, codes)])
    tell(path, "", [(seed, codes)], as_json=False)


@click.command()
@click.argument("codes", type=click.Path(allow_dash=True))
@output_option
@overwrite_option
@click.option("-s", "--seed", type=SEED, default=0, show_default=True, help="Random seed of a diffusion.")
@with_diffusion_options
@with_finish_options
@runtime_options
def decode(
    codes: str,
    output: Path,
    overwrite: bool,
    seed: int,
    diffusion: dict[str, Any],
    finish: dict[str, Any],
    engine: RuntimeOptions,
) -> None:
    """Decode CODES, the output of `encode`, to an image.

    CODES is a file, or - for stdin; or a file of latents (.npy), which `draw` writes if the VAE decoder fails.
    """
    target = Output(output, overwrite=overwrite)
    check_output(target, engine, *([codes] if codes != "-" else []))
    latents = read_latents(Path(codes)) if Path(codes).suffix == LATENTS else None
    numbers = parse_codes(read_codes(codes), codes) if latents is None else []
    with engine.opened() as edge:
        brush = image_writer(edge, engine, diffusion, finish)
        if latents is not None:
            picture = resized(edge.decode_latents(latents, tiled=diffusion["tiled"]), brush.side)
            path = save_picture(picture, target, None)
            if not is_stdout(path):
                show_picture(picture, brush.show)
        else:
            path = brush.save(brush.picture(numbers, seed, output), target, "", [(seed, numbers)])
    tell(path, "", [(seed, numbers)], as_json=False)
