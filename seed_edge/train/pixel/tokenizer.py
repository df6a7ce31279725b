"""Trains an image tokenizer that decodes to pixels, on cached trunk features, in four stages.

1. Closed forms: the initial linear map of the semantic queries (`semantic_init`), and the principal
components
   of colour patches (`patch_pca`).
2. The semantic queries, on words (`semantic_queries`).
3. The codebook, by k-means (`codebook`).
4. The decoder, on fixed codes (`decoder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from seed_edge.models.checkpoints import is_run, load_image_tokenizer, save_image_tokenizer
from seed_edge.models.efficientnet import pretrained_trunk
from seed_edge.models.image_tokenizer import PixelTokenizer
from seed_edge.models.memory_layout import channels_last
from seed_edge.output_checks import RUN_FILES, prepare_output_folder
from seed_edge.train.pixel.codebook import refitted, refitted_geometry
from seed_edge.train.pixel.decoder import train_decoder
from seed_edge.train.pixel.encoding import VECTORS_FILE, codebook_sum, encoder_sum, vectors_of_cache
from seed_edge.train.pixel.extra_images import EXTRA_FOLDER, extra_images
from seed_edge.train.pixel.feature_cache import CACHE_FOLDER, Cache, build_cache
from seed_edge.train.pixel.patch_pca import fit_patches
from seed_edge.train.pixel.recipes import PixelTokenizerRecipe
from seed_edge.train.pixel.semantic_init import init_semantic_map
from seed_edge.train.pixel.semantic_queries import (
    SEMANTIC_FOLDER,
    AuxiliaryHeads,
    SemanticLoss,
    TextTargets,
    train_semantic_queries,
)
from seed_edge.train.trainer import STATE, Report


def train_pixel_tokenizer(
    paths: Sequence[Path],
    out: Path,
    recipe: PixelTokenizerRecipe,
    report: Report,
    images: Path | None = None,
    trunk_weights: Path | None = None,
    decoder_data: Sequence[Path] = (),
) -> None:
    """Train an image tokenizer on the samples of `paths` and write its checkpoint into `out`.

    After an interruption, the same call resumes at the last checkpoint.

    Args:
        decoder_data: further images for the decoder only; only their pixels and codes are stored.
    """
    prepare_output_folder(out, "run", (*paths, *decoder_data, images), RUN_FILES)
    torch.manual_seed(recipe.semantic.seed)
    trunk = pretrained_trunk(trunk_weights)
    cache = build_cache(paths, out / CACHE_FOLDER, trunk, recipe.geometry, report, images)
    model = PixelTokenizer(recipe.geometry)
    model.trunk.load_state_dict(trunk.state_dict())
    model.trunk.requires_grad_(False)
    channels_last(model.pixel_head)
    model.key_dropout = recipe.feature_dropout
    if not (out / SEMANTIC_FOLDER / STATE).exists():  # otherwise they are part of the saved state
        report("initialization: semantic queries and colour patches")
        measure_channels(model, cache)
        init_semantic_map(model, cache)
        fit_patches(model, cache)
    texts = TextTargets(cache, recipe)
    heads = AuxiliaryHeads(recipe.geometry, len(texts.bag.words), len(texts.list))
    train_semantic_queries(SemanticLoss(model, heads, recipe), texts, out, report)
    model = with_codebook(model.eval(), cache, out, recipe, report)
    report("decoder: codes no longer change, so `seed-edge tokenize` can be run from now on")
    extra = None
    if decoder_data:
        folder = out / EXTRA_FOLDER.format(codebook_sum(model))
        extra = extra_images(model, decoder_data, folder, report, images)
    train_decoder(model, cache, extra, out, recipe.decoder, report)


def with_codebook(
    model: PixelTokenizer, cache: Cache, out: Path, recipe: PixelTokenizerRecipe, report: Report
) -> PixelTokenizer:
    """Fit the final codebook and write the tokenizer into `out`; a tokenizer there with the same encoder is
    kept.
    """
    if is_run(out):
        finished = load_image_tokenizer(out)
        if finished.geometry == refitted_geometry(model.geometry, recipe.codebook) and encoder_sum(
            finished
        ) == encoder_sum(model):
            channels_last(finished.pixel_head)
            return finished
    report("codebook: k-means")
    vectors = vectors_of_cache(model, cache, out / VECTORS_FILE)
    model = refitted(model, vectors[cache.rows(held_out=False)], recipe.codebook, recipe.semantic.seed)
    save_image_tokenizer(model, out)
    return model


def measure_channels(model: PixelTokenizer, cache: Cache, sample: int = 1000) -> None:
    """Measure mean and standard deviation of the trunk's channels for `model`, from about `sample` rows of
    the cache.
    """
    step = max(1, len(cache.features) // sample)
    some = torch.from_numpy(cache.features[::step].astype(np.float32))
    model.vision_mean.copy_(some.mean((0, 1)))
    model.vision_std.copy_(some.std((0, 1)).clamp(min=1e-4))
