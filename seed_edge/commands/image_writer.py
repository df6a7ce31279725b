"""Drawings of a command line: options, progress, contact sheets, and writing them to files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seed_edge.commands.common import (
    SEED,
    TEMPERATURE,
    Progress,
    RuntimeOptions,
    print_json,
    print_path,
)
from seed_edge.commands.image_output import (
    Output,
    backup_latents,
    make_diffusion_options,
    show_image,
    write_image,
)
from seed_edge.output_checks import is_stdout

if TYPE_CHECKING:
    from PIL.Image import Image

    from seed_edge.image_metadata import DrawnImage
    from seed_edge.manifest import Sampling
    from seed_edge.runtime.drawing import Drawing
    from seed_edge.runtime.pipeline import SeedEdge
    from seed_edge.runtime.unclip import DiffusionOptions


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
