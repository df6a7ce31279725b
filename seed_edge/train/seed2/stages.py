"""Trains SEED-2's tokenizer: contrastive training of the Q-Former (stage 1), then codebook and de-tokenizer
(stage 2).

The trunk is frozen and comes from its own file. Stage 1 writes a file that stage 2 starts from; stage 2
writes the official layout, which `seed-edge export --ckpt` reads. Recipes as in SEED (Ge et al. 2023,
arXiv:2307.08041); details missing there are those of BLIP-2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather
from transformers import BertTokenizer, CLIPVisionModelWithProjection

from seed_edge.atomic import replacing
from seed_edge.data.samples import Picture, Sample, load_picture, read_samples
from seed_edge.errors import CheckpointError, DataError
from seed_edge.models.checkpoints import VIT_PREFIX, read_state
from seed_edge.models.config import SeedGeometry
from seed_edge.models.eva import EvaViT
from seed_edge.models.image_tokenizer import SeedTokenizer
from seed_edge.output_checks import RUN_FILES, prepare_output_folder
from seed_edge.preprocess import CLIP_MEAN, CLIP_STD, Preprocessing, to_rgb
from seed_edge.train.recipe import Schedule
from seed_edge.train.seed2.losses import ContrastiveQFormer, code_losses
from seed_edge.train.trainer import Batch, LossModule, Report, Trainer

STAGE_ONE_FILE = "contrastive.safetensors"
STAGE_TWO_FILE = "seed_quantizer.safetensors"
FROZEN = ("visual_encoder.", "ln_vision.", "query_tokens", "Qformer.")
"""Parts of the tokenizer that stage 2 does not change."""
DEC_TOKEN = "[DEC]"
"""Token that BLIP-2 adds to BERT's word pieces; the last row of its embedding table."""
READER_THREADS = 8
"""Number of threads that decode images."""


@dataclass(frozen=True)
class ContrastiveRecipe:
    """Recipe of stage 1, contrastive training."""

    schedule: Schedule
    geometry: SeedGeometry = field(default_factory=SeedGeometry)
    min_crop_area: float = 0.5
    """Minimum area of a random crop, as a share of the image."""
    max_text_length: int = 32
    """Maximum length of a caption, in word pieces."""


@dataclass(frozen=True)
class CodesRecipe:
    """Recipe of stage 2, codebook and de-tokenizer."""

    schedule: Schedule
    geometry: SeedGeometry = field(default_factory=SeedGeometry)
    min_crop_area: float = 0.5


class Pairs:
    """Random batches of images, cropped and mirrored at random, each with one of its texts."""

    def __init__(
        self, paths: Sequence[Path], images: Path | None, geometry: SeedGeometry, min_crop_area: float
    ) -> None:
        found = [
            (sample, pictures[0]) for sample, pictures in read_samples(paths, images) if len(pictures) == 1
        ]
        self.samples: list[tuple[Sample, Picture]] = [pair for pair in found if not pair[0].held_out]
        if not self.samples:
            raise DataError("no sample has exactly one image; give pairs of images and captions with --data")
        self.preprocessing = Preprocessing(geometry.image_size, "bicubic", CLIP_MEAN, CLIP_STD)
        self.min_crop_area, self.pool = min_crop_area, ThreadPoolExecutor(READER_THREADS)

    def batch(self, count: int, rng: np.random.Generator) -> Batch:
        """A batch of keys, pixel values (count, 3, S, S) float32, and texts."""
        chosen = [self.samples[i] for i in rng.integers(len(self.samples), size=count)]
        seeds = rng.integers(2**31, size=count)
        views = list(self.pool.map(self._view, (picture for _, picture in chosen), seeds))
        texts = [
            str(rng.choice(sample.captions)) if sample.captions else sample.label or ""
            for sample, _ in chosen
        ]
        keys = [sample.key for sample, _ in chosen]
        return {"keys": keys, "pixel_values": torch.from_numpy(self.preprocessing(views)), "texts": texts}

    def _view(self, picture: Picture, seed: int) -> Image.Image:
        return cropped(to_rgb(load_picture(picture)), self.min_crop_area, np.random.default_rng(seed))


def cropped(image: Image.Image, min_area: float, rng: np.random.Generator) -> Image.Image:
    """Return a random crop of at least `min_area` of the area, with aspect ratio 3:4 to 4:3, mirrored with
    probability 1/2.
    """
    width, height = image.size
    area, ratio = (
        width * height * rng.uniform(min_area, 1.0),
        np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))),
    )
    w, h = min(width, round(np.sqrt(area * ratio))), min(height, round(np.sqrt(area / ratio)))
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    part = image.crop((x, y, x + w, y + h))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


def cleaned(text: str) -> str:
    """Return a caption like BLIP-2: lower case, single spaces, no punctuation except apostrophes."""
    return " ".join(re.sub(r"[.!\"()*#:;~?,/]", " ", text.lower()).split()[:50])


class ContrastiveLoss(LossModule):
    """Contrastive loss of stage 1, between the last query and the text."""

    def __init__(self, trunk: EvaViT, former: ContrastiveQFormer) -> None:
        super().__init__()
        self.trunk, self.former = trunk.requires_grad_(False), former

    def frozen_modules(self) -> list[nn.Module]:
        return [self.trunk]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            vision = self.trunk(batch["pixel_values"])
        images = self.former.of_images(vision)
        texts = self.former.of_texts(batch["ids"], batch["present"])
        if distributed.is_initialized():  # images of all processes are negatives of each other
            images, texts = (torch.cat(all_gather(part.contiguous())) for part in (images, texts))
        return {"contrastive": self.former.loss(images.float(), texts.float())}


class CodesLoss(LossModule):
    """Losses of stage 2; the target of the de-tokenizer is CLIP's embedding of the image."""

    def __init__(self, model: SeedTokenizer, clip: nn.Module) -> None:
        super().__init__()
        self.model, self.clip = model, clip.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(FROZEN))

    def frozen_modules(self) -> list[nn.Module]:
        return [self.model, self.clip]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels = batch["pixel_values"]
        with torch.no_grad():
            vision, embeds = self.model.vision_tokens(pixels), self.clip(pixel_values=pixels).image_embeds
        return code_losses(self.model, vision, embeds.float())


def train_contrastive(
    paths: Sequence[Path],
    out: Path,
    recipe: ContrastiveRecipe,
    vit: Path,
    bert_vocab: Path,
    start: Path | None,
    report: Report,
    images: Path | None = None,
) -> None:
    """Train stage 1 on pairs of images and captions; write `contrastive.safetensors` and `geometry.json` into
    `out`.

    Args:
        vit: `eva_vit_g.pth`.
        bert_vocab: `vocab.txt` of bert-base-uncased.
        start: BLIP-2's `blip2_pretrained.pth`, or an earlier output of this stage; None: random weights.
    """
    prepare_output_folder(out, "run", (*paths, images, vit, bert_vocab, start), RUN_FILES)
    torch.manual_seed(recipe.schedule.seed)
    pairs = Pairs(paths, images, recipe.geometry, recipe.min_crop_area)
    pieces = open_bert_vocab(bert_vocab)
    former = ContrastiveQFormer(recipe.geometry, len(pieces))
    if start is not None:
        fill(former, read_state(start), start)
    loss_module = ContrastiveLoss(open_vit(vit, recipe.geometry), former)

    def batch_of(step: int, rng: np.random.Generator) -> Batch:
        batch = pairs.batch(recipe.schedule.batch_size, rng)
        texts = [cleaned(text) for text in batch.pop("texts")]
        tokenized = pieces(
            texts, padding=True, truncation=True, max_length=recipe.max_text_length, return_tensors="pt"
        )
        return batch | {"ids": tokenized["input_ids"], "present": tokenized["attention_mask"]}

    def after(step: int) -> None:
        save_part(former.state_dict(), recipe.geometry, out / STAGE_ONE_FILE)

    Trainer(out, recipe.schedule, report).run(loss_module, batch_of, after)


def train_codes(
    paths: Sequence[Path],
    out: Path,
    recipe: CodesRecipe,
    vit: Path,
    clip: Path,
    start: Path,
    report: Report,
    images: Path | None = None,
) -> None:
    """Train stage 2 on images; write `seed_quantizer.safetensors` and `geometry.json` into `out`.

    Args:
        vit: `eva_vit_g.pth`.
        clip: folder of CLIP's ViT-H, such as `image_encoder` of stable-diffusion-2-1-unclip.
        start: folder or file that stage 1 wrote, or SEED-2's own checkpoint.
    """
    prepare_output_folder(out, "run", (*paths, images, vit, clip, start), RUN_FILES)
    torch.manual_seed(recipe.schedule.seed)
    pairs = Pairs(paths, images, recipe.geometry, recipe.min_crop_area)
    model = SeedTokenizer(recipe.geometry, training=True)
    model.visual_encoder = open_vit(vit, recipe.geometry)
    path = start / STAGE_ONE_FILE if start.is_dir() else start
    state = read_state(path)
    for part in ("ln_vision", "Qformer"):
        of_part = {
            name.removeprefix(part + "."): tensor
            for name, tensor in state.items()
            if name.startswith(part + ".")
        }
        fill(getattr(model, part), of_part, path)
    fill_parameter(model.query_tokens, state, "query_tokens", path)
    loss_module = CodesLoss(model, open_clip(clip, recipe.geometry))

    def batch_of(step: int, rng: np.random.Generator) -> Batch:
        batch = pairs.batch(recipe.schedule.batch_size, rng)
        del batch["texts"]
        return batch

    def after(step: int) -> None:
        trained = {
            name: tensor for name, tensor in model.state_dict().items() if not name.startswith(VIT_PREFIX)
        }
        save_part(trained, recipe.geometry, out / STAGE_TWO_FILE)

    Trainer(out, recipe.schedule, report).run(loss_module, batch_of, after)


def open_bert_vocab(path: Path) -> BertTokenizer:
    """Open BERT's word pieces with the additional token of BLIP-2.

    Raises:
        CheckpointError: the file is missing.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; --bert-vocab takes vocab.txt of bert-base-uncased")
    pieces = BertTokenizer(str(path))
    pieces.add_special_tokens({"bos_token": DEC_TOKEN})
    return pieces


def open_vit(path: Path, geometry: SeedGeometry) -> EvaViT:
    """Load the trunk, frozen.

    Raises:
        CheckpointError: the file is missing, or a tensor is missing or of another shape.
    """
    trunk = EvaViT(geometry)
    fill(trunk, {name.removeprefix(VIT_PREFIX): tensor for name, tensor in read_state(path).items()}, path)
    return trunk.eval().requires_grad_(False)


def open_clip(path: Path, geometry: SeedGeometry) -> CLIPVisionModelWithProjection:
    """Load CLIP's image encoder, frozen; its embeddings are the targets of stage 2.

    Raises:
        CheckpointError: it cannot be read, or its embeddings are of another width.
    """
    try:
        clip = CLIPVisionModelWithProjection.from_pretrained(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as CLIP's image encoder ({str(error).splitlines()[0]})"
        ) from error
    if clip.config.projection_dim != geometry.image_embed_dim:
        raise CheckpointError(
            f"{path} outputs {clip.config.projection_dim} values, the geometry asks for "
            f"{geometry.image_embed_dim}"
        )
    return clip.eval().requires_grad_(False)


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors of `state` into the parameters and buffers of `module`; other tensors are ignored.

    Raises:
        CheckpointError: one is missing or of another shape.
    """
    for name, target in module.state_dict(keep_vars=True).items():
        fill_parameter(target, state, name, path)


@torch.no_grad()
def fill_parameter(target: Tensor, state: Mapping[str, Tensor], name: str, path: Path) -> None:
    """Copy one tensor of `state` into `target`; see `fill`."""
    tensor = state.get(name)
    if tensor is None:
        raise CheckpointError(f"{path}: tensor {name} is missing")
    if tensor.shape != target.shape:
        raise CheckpointError(
            f"{path}: tensor {name} has shape {tuple(tensor.shape)}, it must be {tuple(target.shape)}"
        )
    target.copy_(tensor)


def save_part(state: Mapping[str, Tensor], geometry: SeedGeometry, path: Path) -> None:
    """Write tensors to `path`, and the geometry beside them."""
    geometry.save(path.parent)
    with replacing(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, partial)
