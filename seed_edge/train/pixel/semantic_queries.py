"""Trains the semantic queries on words: their codes have to predict the words of the texts of an image.

Losses: vector quantization; a bag of words (Joulin et al. 2016, arXiv:1511.02251); and whole texts, which a
small auxiliary language model has to predict from the codes (`aux_captioner`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.data.phrasing import caption
from seed_edge.models.checkpoints import save_image_tokenizer
from seed_edge.models.config import PixelGeometry
from seed_edge.models.image_tokenizer import PixelTokenizer
from seed_edge.models.quantizer import Quantized
from seed_edge.train.pixel.aux_captioner import AuxiliaryCaptioner, WordList
from seed_edge.train.pixel.bag_of_words import WordTargets
from seed_edge.train.pixel.batches import BatchSource
from seed_edge.train.pixel.feature_cache import VIEWS, Cache
from seed_edge.train.pixel.recipes import PixelTokenizerRecipe
from seed_edge.train.trainer import Batch, LossModule, Report, Trainer

SEMANTIC_FOLDER = "semantic"
"""Folder within a run: state and log of this stage."""
HELD_OUT_IMAGES = 400
"""Held-out images whose losses are measured at each checkpoint."""
SECOND_VIEW_SHARE = 0.4
"""Share of images of a batch in their second view."""
REVIVAL_THRESHOLD = 0.03
"""Codebook rows used less than this fraction of the mean are moved."""
LAST_REVIVAL = 0.8
"""Fraction of the stage after which no row is moved."""


class AuxiliaryHeads(nn.Module):
    """Modules that only training needs: they predict words from semantic codes, and count how often codebook
    rows are used.
    """

    def __init__(self, geometry: PixelGeometry, bag_words: int, list_words: int) -> None:
        super().__init__()
        count, width = geometry.semantic_queries, geometry.qformer_width
        self.bag = nn.Sequential(
            nn.Flatten(), nn.Linear(count * width, 2 * width), nn.GELU(), nn.Linear(2 * width, bag_words)
        )
        self.captioner = AuxiliaryCaptioner(list_words, count, width, heads=geometry.qformer_heads)
        self.usage: Tensor
        self.register_buffer("usage", torch.zeros(geometry.codebook_size))

    def codes_in_use(self) -> int:
        """Number of codebook rows whose use is above the revival threshold."""
        return int((self.usage > REVIVAL_THRESHOLD * self.usage.mean()).sum())


class SemanticLoss(LossModule):
    """Losses of the semantic queries: `vq`, `bag_of_words` and `captioner`."""

    def __init__(self, model: PixelTokenizer, heads: AuxiliaryHeads, recipe: PixelTokenizerRecipe) -> None:
        super().__init__()
        self.model, self.heads, self.recipe = model, heads, recipe
        for part in (model.blocks_image, model.pixel_head):  # trained later, by the decoder stage
            part.requires_grad_(False)

    def adamw_modules(self) -> list[nn.Module]:
        return [self.heads.bag, self.heads.captioner.head]

    def frozen_modules(self) -> list[nn.Module]:
        return [self.model.trunk]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = self.model.semantic_features(batch["vision"])
        quantized = self.quantized(z, batch["revive"])
        chosen = torch.rand(len(z), 1, 1, device=z.device) < batch["progress"] / self.recipe.quantization_ramp
        losses = self.word_losses(torch.where(chosen, quantized.vectors, z), batch)
        return losses | {"vq": self.recipe.vq_weight * quantized.loss}

    def quantized(self, z: Tensor, revive: bool) -> Quantized:
        """Quantize vectors (batch, n, code_dim) and, in training, count the rows used.

        Args:
            revive: first move unused rows of the codebook onto some of the vectors.
        """
        usage, quantizer = self.heads.usage, self.model.quantize
        if revive:
            quantizer.revive(usage, z.detach().flatten(0, 1), REVIVAL_THRESHOLD * usage.mean().item() + 1e-9)
        result = quantizer(z)
        if self.training:
            counted = torch.bincount(result.codes.flatten(), minlength=len(usage))
            usage.mul_(0.995).add_(counted, alpha=0.005)
        return result

    def word_losses(self, vectors: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Losses of words predicted from semantic vectors (batch, n, code_dim)."""
        features = self.model.semantic_code_features(vectors)
        bag = F.log_softmax(self.heads.bag(features).float(), -1)
        return {
            "bag_of_words": -self.recipe.bag_of_words_weight * (batch["bag"] * bag).sum(1).mean(),
            "captioner": self.recipe.captioner_weight
            * self.heads.captioner(features[batch["text_rows"]], batch["text_inputs"], batch["text_targets"]),
        }


class TextTargets:
    """Batches of cached features with the words and texts that the codes have to predict."""

    def __init__(self, cache: Cache, recipe: PixelTokenizerRecipe) -> None:
        self.cache, self.bag = cache, WordTargets(cache.samples, recipe.num_words)
        rng = np.random.default_rng(recipe.semantic.seed)
        texts = [
            caption(sample, rng) or "" for sample in cache.samples for _ in range(3) if not sample.held_out
        ]
        self.list = WordList(texts, recipe.num_words)

    def batch(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """A batch of rows of the cache; every second row has a text to predict."""
        text_rows = np.arange(int(rng.integers(2)), len(rows), 2)
        texts = [caption(self.cache.samples[row // VIEWS], rng) for row in rows[text_rows]]
        inputs, targets = self.list.batch(texts)
        return {
            "keys": [self.cache.samples[row // VIEWS].key for row in rows],
            "vision": torch.from_numpy(self.cache.features[rows]),
            "bag": self.bag((rows // VIEWS).tolist()),
            "text_rows": torch.from_numpy(text_rows),
            "text_inputs": inputs,
            "text_targets": targets,
        }

    def held_out_losses(self, loss_module: SemanticLoss) -> dict[str, float]:
        """Losses of words on held-out images, in eval mode, named `held_out_*`; empty without such images."""
        rows = self.cache.rows(held_out=True)
        if not len(rows):
            return {}
        rng = np.random.default_rng(0)
        batch = self.batch(rng.choice(rows, HELD_OUT_IMAGES), rng) | {"progress": 1.0, "revive": False}
        device = loss_module.model.vision_mean.device
        placed = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()
        }
        loss_module.eval()
        with torch.inference_mode():
            losses = SemanticLoss.forward(loss_module, placed)
        loss_module.train()
        return {f"held_out_{name}": losses[name].item() for name in ("bag_of_words", "captioner")}


def train_semantic_queries(loss_module: SemanticLoss, texts: TextTargets, out: Path, report: Report) -> None:
    """Train the semantic queries; the tokenizer is written into `out` at each checkpoint."""
    model, heads, recipe = loss_module.model, loss_module.heads, loss_module.recipe
    steps = recipe.semantic.steps
    source = BatchSource(texts.cache.samples, recipe.semantic.batch_size, recipe.semantic_pool_shares)

    def batch_of(step: int, rng: np.random.Generator) -> Batch:
        numbers = source(rng)
        rows = numbers * VIEWS + (rng.random(len(numbers)) < SECOND_VIEW_SHARE)
        return texts.batch(rows, rng) | {
            "progress": step / steps,
            "revive": is_revival_step(step, recipe, steps),
        }

    def after(step: int) -> dict[str, float]:
        save_image_tokenizer(model, out)
        return texts.held_out_losses(loss_module) | {"codes_in_use": heads.codes_in_use()}

    later = f"codebook and decoder ({recipe.decoder.schedule.steps:,} steps)"
    Trainer(out / SEMANTIC_FOLDER, recipe.semantic, report, later).run(loss_module, batch_of, after)


def is_revival_step(step: int, recipe: PixelTokenizerRecipe, steps: int) -> bool:
    """Whether unused rows of the codebook are moved at this step: at intervals, and not near the end of the
    stage.
    """
    return step % recipe.revive_every == 0 and step < LAST_REVIVAL * steps
