"""Retrieval metrics in the features of a network that training does not use.

EfficientNet-Lite2 with ImageNet weights; the vector of an image is its pooled head of 1280 channels, compared
by cosine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from seed_edge.models.efficientnet import IMAGE_MEAN, IMAGE_STD, pretrained_trunk
from seed_edge.models.memory_layout import channels_last
from seed_edge.preprocess import Preprocessing

EDITION, SIDE = 2, 260


class FeatureExtractor:
    """Maps images to unit vectors."""

    def __init__(self) -> None:
        self.trunk = channels_last(pretrained_trunk(edition=EDITION, head=True))
        self.preprocessing = Preprocessing(SIDE, "bicubic", IMAGE_MEAN, IMAGE_STD)

    @torch.inference_mode()
    def vectors(self, pictures: Sequence[Image.Image], batch: int = 16) -> NDArray[np.float32]:
        """Return the vectors (images, 1280) float32 of RGB images, each of length 1."""
        parts = []
        for start in range(0, len(pictures), batch):
            values = self.preprocessing(pictures[start : start + batch])
            pooled = self.trunk.pooled(torch.from_numpy(values).to(memory_format=torch.channels_last))
            parts.append(torch.nn.functional.normalize(pooled, dim=-1).numpy())
        return np.concatenate(parts)


def ranks_of_targets(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], targets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the rank (queries,) of each query's target row of the gallery, by similarity to the query; 0 is
    best.
    """
    scores = queries @ gallery.T
    ranks: NDArray[np.int64] = (scores > scores[np.arange(len(targets)), targets][:, None]).sum(1)
    return ranks
