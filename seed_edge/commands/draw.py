"""The commands `draw`, `edit`, `reconstruct` and `decode`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seed_edge.commands.caption_output import FileProgress
from seed_edge.commands.codes_input import parse_code_lists, read_codes, read_latents, read_prompts
from seed_edge.commands.common import (
    MAX_SEED,
    SEED,
    TEMPERATURE,
    TEXT,
    Progress,
    RuntimeOptions,
    json_option,
    max_pixels_option,
    note,
    option,
    present,
    print_json,
    print_path,
    runtime_options,
)
from seed_edge.commands.image_output import (
    LATENTS,
    Output,
    backup_latents,
    check_grid,
    check_output,
    folder_or_file,
    make_diffusion_options,
    make_folder,
    numbered,
    overwrite_option,
    prompt_file_name,
    resolve_output,
    show_image,
    with_diffusion_options,
    with_save_options,
    write_image,
)
from seed_edge.errors import PromptError
from seed_edge.output_checks import is_stdout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from seed_edge.image_metadata import DrawnImage, Record
    from seed_edge.manifest import Sampling
    from seed_edge.runtime.drawing import Drawing
    from seed_edge.runtime.pipeline import SeedEdge
    from seed_edge.runtime.unclip import DiffusionOptions

MAX_IMAGES = 1000

output_option = click.option(
    "-o",
    "--output",
    type=click.Path(),
    required=True,
    help="Image to write; - for stdout; FOLDER/ for an image named after the input.",
)
seed_option = click.option(
    "-s", "--seed", type=SEED, help="Random seed.  [default: a random one, printed on stderr]"
)
temperature_option = click.option(
    "--temperature",
    type=TEMPERATURE,
    help="Sampling temperature; 0 takes the most likely codes.  [default: set by the bundle]",
)


class StageProgress:
    """Progress of a drawing on stderr: one `Progress` for each stage."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._stage = quiet, ""
        self._line = Progress("", quiet)

    def __enter__(self) -> StageProgress:
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._end_line()
            self._stage, self._line = stage, Progress(stage, self._quiet)
        self._line(done, total)

    def __exit__(self, *_: object) -> None:
        self._end_line()

    def _end_line(self) -> None:
        if self._stage:
            self._line.__exit__()


@dataclasses.dataclass(frozen=True)
class ImageWriter:
    """Draws images with the options of a command line, and writes them to files."""

    edge: SeedEdge
    options: DiffusionOptions
    sampling: Sampling
    negative: str | None
    """Negative prompt."""
    side: int | None
    """Side of a saved image in pixels; None for the side of the drawn image."""
    metadata: bool
    show: bool | None
    """Whether saved images are shown in the terminal; None shows them if stdout is a terminal."""
    quiet: bool

    def draw(self, prompt: str, seed: int, path: Path) -> Drawing:
        """Draw an image of a prompt; `path` is where it will be saved."""
        with self._decoding(path) as callbacks:
            return self._sized(
                self.edge.draw(
                    prompt,
                    seed=seed,
                    negative=self.negative,
                    sampling=self.sampling,
                    options=self.options,
                    **callbacks,
                )
            )

    def edit(self, image: Image, instruction: str, seed: int, path: Path) -> Drawing:
        """Edit an image; `path` is where the result will be saved."""
        with self._decoding(path) as callbacks:
            drawing = self.edge.edit(
                image, instruction, seed=seed, sampling=self.sampling, options=self.options, **callbacks
            )
        return self._sized(drawing)

    def render(self, codes: Sequence[int], seed: int, path: Path, prompt: str = "") -> Drawing:
        """Decode codes; `path` is where the image will be saved."""
        with self._decoding(path) as callbacks:
            stages = callbacks["progress"]
            drawing = self.edge.render(
                codes,
                prompt=prompt,
                seed=seed,
                negative=self.negative,
                temperature=self.sampling.temperature,
                options=self.options,
                progress=lambda done, total: stages("steps", done, total),
                on_latents=callbacks["on_latents"],
            )
        return self._sized(drawing)

    @contextmanager
    def _decoding(self, path: Path) -> Iterator[dict[str, Any]]:
        """Yield the callbacks of a drawing. If the last stage of a diffusion fails, its latents are saved
        next to `path`.
        """
        with StageProgress(self.quiet) as progress, backup_latents(path) as on_latents:
            yield {"progress": progress, "on_latents": on_latents}

    def _sized(self, drawing: Drawing) -> Drawing:
        return drawing if self.side is None else drawing.resized(self.side)

    def save(self, drawing: Drawing, output: Output) -> Path:
        """Write the image file, show the image if `show` asks for it, and return the path."""
        path = write_image(drawing.image, output, drawing.provenance if self.metadata else None)
        if not is_stdout(path):
            show_image(drawing.image, self.show)
        return path

    def drawn_side(self) -> int:
        """Side of a saved image in pixels."""
        return self.side or self.edge.bundle.manifest.output_size


class ContactSheet:
    """A contact sheet of drawings of one size; its provenance lists all of them."""

    def __init__(self, count: int) -> None:
        """
        Args:
            count: the number of drawings that will be added.
        """
        from seed_edge.contact_sheet import ImageGrid

        self._grid = ImageGrid(count)
        self._drawn: list[DrawnImage] = []
        self._last: Drawing | None = None

    def add(self, drawing: Drawing) -> None:
        """Paste the next drawing."""
        self._grid.add(drawing.image)
        self._drawn += drawing.provenance.drawn
        self._last = drawing

    def __len__(self) -> int:
        return len(self._drawn)

    def drawing(self) -> Drawing:
        """Return the sheet, with the settings of the last drawing; at least one was added."""
        assert self._last is not None
        provenance = dataclasses.replace(self._last.provenance, drawn=tuple(self._drawn))
        return dataclasses.replace(self._last, image=self._grid.image(), provenance=provenance)


def image_writer(
    edge: SeedEdge,
    runtime: RuntimeOptions,
    diffusion: dict[str, Any],
    saving: dict[str, Any],
    *,
    temperature: float | None = None,
    best_of: int | None = None,
    negative: str | None = None,
) -> ImageWriter:
    """Return an `ImageWriter` for the options of a command line.

    Args:
        diffusion: see `with_diffusion_options`.
        saving: see `with_save_options`.

    Raises:
        click.ClickException: options do not apply to the bundle.
    """
    options = make_diffusion_options(edge, diffusion)
    edge.require_decoder()
    sampling = edge.generator.sampling
    if temperature is not None:
        sampling = dataclasses.replace(sampling, temperature=temperature)
    if best_of is not None:
        sampling = dataclasses.replace(sampling, best_of=best_of)
    return ImageWriter(edge, options, sampling, negative, quiet=runtime.quiet, **saving)


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
        from seed_edge.image_metadata import read_record

        record = read_record(source)
        default = prompt_file_name(record.prompt or Path(source).stem)
        target = resolve_output(output, default, overwrite, runtime)
        check_output(target, runtime, source)
        with runtime.open_bundle() as edge:
            check_same_bundle(edge, record, source)
            negative = record.negative or None
            writer = image_writer(
                edge, runtime, diffusion, saving, temperature=record.temperature, negative=negative
            )
            redraw(with_recorded_options(writer, record), record, target, as_json)
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


def without_display(saving: dict[str, Any]) -> dict[str, Any]:
    """Return the save options with images shown only for --show, because a program reads stdout."""
    return saving | {"show": bool(saving["show"])}


def check_stdout_is_free(output: Path | None, as_json: bool) -> None:
    """Check that JSON and an image are not both written to stdout.

    Raises:
        click.UsageError: they are.
    """
    if as_json and output is not None and is_stdout(output):
        raise click.UsageError("stdout takes the image only; leave out --json, or choose another -o")


def new_seed(runtime: RuntimeOptions) -> int:
    """Return a random seed, and print it on stderr so that the image can be drawn again."""
    import secrets

    seed = secrets.randbelow(2**31)
    runtime.note(f"seed: {seed}")
    return seed


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


def report_output(path: Path, drawing: Drawing, as_json: bool) -> None:
    """Print the path of a written image, or its JSON record, on stdout; nothing if stdout is the image."""
    if is_stdout(path):
        return
    if not as_json:
        print_path(path)
        return
    drawn = drawing.provenance.drawn
    seed, codes = drawn[0].seed, list(drawn[0].codes)
    record: dict[str, Any] = {"image": str(path), "prompt": drawing.prompt, "seed": seed, "codes": codes}
    if len(drawn) > 1:
        record |= {"seed": [entry.seed for entry in drawn], "codes": [list(entry.codes) for entry in drawn]}
    print_json(record)


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


def redraw(writer: ImageWriter, record: Record, output: Output, as_json: bool) -> None:
    """Draw the images of a record again, from their codes."""
    if len(record.drawn) > 1:
        check_grid(len(record.drawn), writer.drawn_side(), output.path)
    sheet = ContactSheet(len(record.drawn))
    for drawn in record.drawn:
        sheet.add(writer.render(drawn.codes, drawn.seed, output.path, record.prompt))
    drawing = sheet.drawing()
    report_output(writer.save(drawing, output), drawing, as_json)


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


@click.command()
@click.argument("image", type=click.Path())
@output_option
@overwrite_option
@click.option("-s", "--seed", type=SEED, default=0, show_default=True, help="Random seed of a diffusion.")
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
@click.option("-s", "--seed", type=SEED, default=0, show_default=True, help="Random seed of a diffusion.")
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
