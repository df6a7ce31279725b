"""Contact sheets of held-out images above their reconstructions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from seed_edge.contact_sheet import contact_sheet, save_contact_sheet
from seed_edge.models.image_tokenizer import PixelTokenizer
from seed_edge.preprocess import to_images
from seed_edge.train.pixel.feature_cache import VIEWS, Cache


@torch.inference_mode()
def reconstruct(
    model: PixelTokenizer, features: NDArray[np.float16]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the codes (m, n) and pixels (m, 3, H, W) of cached features (m, tokens, vit_width)."""
    vision = torch.from_numpy(features.astype(np.float32)).to(model.vision_mean.device)
    codes = model.quantize.codes(model.query_features(vision))
    return codes.cpu().numpy(), model.decode(codes).cpu().numpy()


def write_reconstructions(model: PixelTokenizer, cache: Cache, path: Path, columns: int = 16) -> None:
    """Write random held-out images above their reconstructions as PNG: two rows of drawings, then two of
    photos.
    """
    rng, rows = np.random.default_rng(1), cache.rows(held_out=True)
    if not len(rows):
        rows = cache.rows(held_out=False)
    drawn = np.array([cache.samples[row // VIEWS].style is not None for row in rows])
    images: list[Image.Image] = []
    for pool in (rows[drawn], rows[~drawn]):
        if len(pool):
            chosen = rng.choice(pool, columns)
            truth = [Image.fromarray(cache.pixels[row]) for row in chosen]
            images += [*truth, *to_images(reconstruct(model, cache.features[chosen])[1])]
    save_contact_sheet(path, contact_sheet(images, columns))
