"""A trunk that had no part in training tells whether a drawing shows what it should.

EfficientNet-Lite2, ImageNet weights; a picture's vector is its pooled 1280-channel head, compared by cosine.
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


class Judge:
    """Pictures to unit vectors."""

    def __init__(self) -> None:
        self.trunk = channels_last(pretrained_trunk(edition=EDITION, head=True))
        self.preprocessing = Preprocessing(SIDE, "bicubic", IMAGE_MEAN, IMAGE_STD)

    @torch.inference_mode()
    def vectors(self, pictures: Sequence[Image.Image], batch: int = 16) -> NDArray[np.float32]:
        """(pictures, 1280), each row of length 1."""
        found = []
        for start in range(0, len(pictures), batch):
            values = self.preprocessing(pictures[start : start + batch])
            pooled = self.trunk.pooled(torch.from_numpy(values).to(memory_format=torch.channels_last))
            found.append(torch.nn.functional.normalize(pooled, dim=-1).numpy())
        return np.concatenate(found)


def rank_of_own(queries: NDArray[np.float32], gallery: NDArray[np.float32], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each query how many of the gallery are nearer than its own picture, row `own` of the gallery; 0 is best."""
    scores = queries @ gallery.T
    ranks: NDArray[np.int64] = (scores > scores[np.arange(len(own)), own][:, None]).sum(1)
    return ranks
