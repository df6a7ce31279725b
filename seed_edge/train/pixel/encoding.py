"""Vectors and codes of cached images, from the current encoder."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from seed_edge.atomic import replacing
from seed_edge.models.image_tokenizer import PixelTokenizer
from seed_edge.train.pixel.feature_cache import Cache

VECTORS_FILE = "vectors.npz"
"""File within a run: vectors of all cached images before quantization."""


@torch.inference_mode()
def vectors_of_cache(
    model: PixelTokenizer, cache: Cache, path: Path, batch: int = 256
) -> NDArray[np.float32]:
    """Return the vectors of all cached rows before quantization, (rows, n, code_dim) float32; stored at
    `path` for this encoder.
    """
    encoder = encoder_sum(model)
    if path.exists():
        with np.load(path) as stored:
            if int(stored["encoder"]) == encoder:
                return stored["vectors"]
    parts, device = [], model.vision_mean.device
    for start in range(0, len(cache.features), batch):
        vision = torch.from_numpy(cache.features[start : start + batch].astype(np.float32)).to(device)
        parts.append(model.query_features(vision).float().cpu().numpy())
    vectors = np.concatenate(parts)
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, vectors=vectors, encoder=encoder)
    return vectors


def encoder_sum(model: PixelTokenizer) -> int:
    """Checksum of the parameters of the encoder."""
    modules = (model.encode_task_layer, model.glance, model.patches)
    parts = (
        model.query_tokens,
        *model.code_norm.buffers(),
        *(p for module in modules for p in module.parameters()),
    )
    return zlib.crc32(b"".join(part.detach().cpu().numpy().tobytes() for part in parts))


def codebook_sum(model: PixelTokenizer) -> int:
    """Checksum of the codebook."""
    return zlib.crc32(model.quantize.embedding.weight.detach().cpu().numpy().tobytes())


@torch.inference_mode()
def codes_of(model: PixelTokenizer, vectors: NDArray[np.float32], batch: int = 1024) -> NDArray[np.int64]:
    """Return the codes (rows, n) int64 of vectors (rows, n, code_dim)."""
    device = model.vision_mean.device
    parts = (vectors[start : start + batch] for start in range(0, len(vectors), batch))
    return np.concatenate(
        [model.quantize.codes(torch.from_numpy(part).to(device)).cpu().numpy() for part in parts]
    )
