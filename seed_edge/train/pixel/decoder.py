"""Trains the decoder on fixed codes: pixel loss (L1), perceptual loss, and optionally a critic.

Codes are fixed by then: while codes still change, a decoder learns the mean of the images that a code may
come to stand for.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.models.checkpoints import save_image_tokenizer
from seed_edge.models.image_tokenizer import PixelTokenizer
from seed_edge.train.pixel.batches import BatchSource
from seed_edge.train.pixel.encoding import VECTORS_FILE, codebook_sum, codes_of, vectors_of_cache
from seed_edge.train.pixel.extra_images import ExtraImages
from seed_edge.train.pixel.feature_cache import VIEWS, Cache
from seed_edge.train.pixel.feature_noise import FeatureNoise
from seed_edge.train.pixel.perceptual import Critic, TrunkFeatures, perceptual_distance
from seed_edge.train.pixel.preview import write_reconstructions
from seed_edge.train.pixel.recipes import DecoderRecipe
from seed_edge.train.trainer import Batch, LossModule, Report, Trainer

DECODER_FOLDER = "decoder-{:08x}"
"""Folder within a run, named by the checksum of the codebook: state and log of this stage."""


class DecoderLoss(LossModule):
    """Losses of the decoder: `l1`, `perceptual`, and with a critic `critic` and `adversarial`."""

    def __init__(self, model: PixelTokenizer, recipe: DecoderRecipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.trunk_features = TrunkFeatures(model.trunk, recipe.perceptual_taps)
        channels = model.trunk.tap_channels(recipe.perceptual_taps)
        self.critic = Critic(channels) if recipe.critic_weight else None
        model.requires_grad_(False)
        for part in (model.decode_task_layer, model.blocks_image, model.pixel_head):
            part.requires_grad_(True)
        model.pos_embed_image.requires_grad_(True)

    def adamw_modules(self) -> list[nn.Module]:
        return [self.model.pixel_head.memory]  # too wide for Muon

    def frozen_modules(self) -> list[nn.Module]:
        return [self.model.trunk]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, truth = self.recipe, batch["pixels"]
        decoded = self.model.decode_vectors(self.model.quantize.embedding(batch["codes"])).float()
        stride = max(1, len(truth) // recipe.perceptual_images)
        chosen = slice(None, None, stride)  # from every pool, since images of one pool are adjacent
        features, target_features = self.trunk_features(decoded[chosen], truth[chosen])
        losses = {
            "l1": F.l1_loss(decoded, truth),
            "perceptual": recipe.perceptual_weight * perceptual_distance(features, target_features),
        }
        if self.critic is not None and batch["progress"] >= recipe.critic_start:
            losses["critic"], adversarial = self.critic.losses(features, target_features)
            losses["adversarial"] = recipe.critic_weight * adversarial
        return losses


def train_decoder(
    model: PixelTokenizer,
    cache: Cache,
    extra: ExtraImages | None,
    out: Path,
    recipe: DecoderRecipe,
    report: Report,
) -> None:
    """Train everything after the codebook on the current codes; the encoder and the codebook do not change.

    Args:
        extra: images beside the cached ones.
        out: folder of the run; the tokenizer is written into it at each checkpoint.
    """
    model.eval()
    vectors = vectors_of_cache(model, cache, out / VECTORS_FILE)
    codes, samples, cached = codes_of(model, vectors[::VIEWS]), cache.samples, len(cache.samples)
    if extra is not None:
        codes, samples = np.concatenate([codes, extra.codes]), [*samples, *extra.samples]
    all_codes = torch.from_numpy(codes)
    semantic = model.geometry.semantic_queries
    feature_noise = FeatureNoise(cache.samples, vectors[:, :semantic])
    source = BatchSource(samples, recipe.schedule.batch_size, recipe.pool_shares)
    codebook = copy.deepcopy(model.quantize).cpu()  # batches are made in another thread

    def batch_of(step: int, rng: np.random.Generator) -> Batch:
        numbers = source(rng)
        of_cache = numbers < cached
        batch_codes, varied = (
            all_codes[numbers],
            (rng.random(len(numbers)) < recipe.feature_noise_share) & of_cache,
        )
        if varied.any():
            batch_codes[varied, :semantic] = codebook.codes(
                torch.from_numpy(feature_noise(numbers[varied] * VIEWS, rng))
            )
        pixels = np.empty((len(numbers), *cache.pixels.shape[1:]), np.uint8)
        pixels[of_cache] = cache.pixels[numbers[of_cache] * VIEWS]
        if extra is not None:
            pixels[~of_cache] = extra.pixels[numbers[~of_cache] - cached]
        return {
            "keys": [samples[number].key for number in numbers],
            "codes": batch_codes,
            "pixels": torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2),
            "progress": step / recipe.schedule.steps,
        }

    def after(step: int) -> None:
        save_image_tokenizer(model, out)
        write_reconstructions(model, cache, out / "sheets" / f"decoder-{step:06d}.png")

    folder = out / DECODER_FOLDER.format(codebook_sum(model))
    Trainer(folder, recipe.schedule, report).run(DecoderLoss(model, recipe), batch_of, after)
