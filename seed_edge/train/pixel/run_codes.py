"""Encoder and decoder of a finished run, and the codes of its training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from seed_edge.data.code_shards import Codebook, CodeSample
from seed_edge.models.checkpoints import load_image_tokenizer
from seed_edge.models.efficientnet import preprocessing_of
from seed_edge.preprocess import to_images
from seed_edge.train.pixel.encoding import VECTORS_FILE, codes_of, vectors_of_cache
from seed_edge.train.pixel.feature_cache import CACHE_FOLDER, VIEWS, open_cache
from seed_edge.train.pixel.feature_noise import FeatureNoise
from seed_edge.train.trainer import Report
from seed_edge.vocab import CodeSpace


def codes_of_run(
    run: Path, variations: int, report: Report
) -> tuple[CodeSpace, Iterator[CodeSample], Codebook]:
    """Return the code space of a run, its samples with the codes of their views, and its codebook.

    Args:
        variations: number of additional code arrays of each sample, varied by `feature_noise`.

    Raises:
        CheckpointError: the run has no image tokenizer.
        DataError: the run has no feature cache.
    """
    model = load_image_tokenizer(run)
    cache = open_cache(run / CACHE_FOLDER, model.geometry)
    report("codes: encoding the cached images")
    vectors, semantic = vectors_of_cache(model, cache, run / VECTORS_FILE), model.geometry.semantic_queries
    codes, rng = codes_of(model, vectors), np.random.default_rng(0)
    feature_noise, varied = FeatureNoise(cache.samples, vectors[:, :semantic]), []
    for _ in range(variations):
        rows = np.arange(len(cache.samples)) * VIEWS + rng.integers(VIEWS, size=len(cache.samples))
        other_codes = codes[rows, semantic:]
        varied.append(np.concatenate([codes_of(model, feature_noise(rows, rng)), other_codes], 1))

    def samples() -> Iterator[CodeSample]:
        for number, sample in enumerate(cache.samples):
            first, *views = codes[number * VIEWS : (number + 1) * VIEWS]
            yield CodeSample(sample, (first,), (*views, *(array[number] for array in varied)))

    space = CodeSpace(model.geometry.codebook_size, model.geometry.num_queries)
    return (
        space,
        samples(),
        Codebook(model.quantize.embedding.weight.detach().float().numpy(), model.geometry.own_rows),
    )


def encoder_of_run(run: Path) -> tuple[CodeSpace, Callable[[Sequence[Image.Image]], NDArray[np.int64]]]:
    """Return the code space of a run, and its encoder: images -> codes (images, codes_per_image) int64."""
    model = load_image_tokenizer(run)
    preprocessing = preprocessing_of(model.geometry)

    def encode(images: Sequence[Image.Image]) -> NDArray[np.int64]:
        with torch.inference_mode():
            return model.encode(torch.from_numpy(preprocessing(images))).numpy()

    return CodeSpace(model.geometry.codebook_size, model.geometry.num_queries), encode


def decoder_of_run(run: Path) -> Callable[[NDArray[np.int64]], Image.Image]:
    """Return the decoder of a run: codes (codes_per_image,) -> image."""
    model = load_image_tokenizer(run)

    def decode(codes: NDArray[np.int64]) -> Image.Image:
        with torch.inference_mode():
            return to_images(model.decode(torch.from_numpy(codes)[None]).numpy())[0]

    return decode
