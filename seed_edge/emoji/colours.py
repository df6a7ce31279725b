"""Colours of training drawings: dominant hue, colour word and recolouring.

Every word of `data.phrasing.COLOURS` is a key of `HUES` or of `SHADES`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HUES = {"red": 0, "orange": 28, "yellow": 52, "green": 120, "blue": 215, "purple": 275, "pink": 330}
"""Colour word -> hue of a recoloured drawing, in degrees."""
SHADES = {"brown": (22, 0.9, 0.55), "black": (0, 0.1, 0.3), "white": (0, 0.06, 1.3), "gray": (0, 0.04, 0.75)}
"""Other colour word -> hue in degrees, factor of the saturation, factor of the value."""


def dominant_hue(image: Image.Image) -> float | None:
    """Return the hue, in degrees, of at least 55 % of the opaque area (within 25 degrees), or None."""
    h, s, v, a = _hsva(image)
    opaque, vivid = a > 128, (a > 128) & (s > 0.35) & (v > 0.25)
    if vivid.sum() < 0.55 * opaque.sum():
        return None
    histogram = np.bincount((h[vivid] // 10).astype(int) % 36, minlength=36)
    window = np.sum([np.roll(histogram, k) for k in (-2, -1, 0, 1, 2)], axis=0)
    best = int(np.argmax(window))
    return best * 10.0 + 5 if window[best] >= 0.55 * opaque.sum() else None


def colour_word(hue: float) -> str:
    """Return the colour word with the nearest hue on the colour circle."""
    return min(HUES, key=lambda word: abs((hue - HUES[word] + 180) % 360 - 180))


def recolour(image: Image.Image, hue: float, word: str) -> Image.Image:
    """Return `image` with all colours near `hue` changed to the colour `word`."""
    h, s, v, a = _hsva(image)
    near = (np.abs((h - hue + 180) % 360 - 180) < 40) & (s > 0.2)
    if word in HUES:
        h = np.where(near, (h - hue + HUES[word]) % 360, h)
    else:
        target_hue, saturation, value = SHADES[word]
        h, s = np.where(near, target_hue, h), np.where(near, s * saturation, s)
        v = np.where(near, np.minimum(v * value, 1.0), v)
    hsv = np.stack([h / 360 * 255, s * 255, v * 255], -1).round().astype(np.uint8)
    result = Image.fromarray(hsv, "HSV").convert("RGB")
    result.putalpha(Image.fromarray(a.astype(np.uint8)))
    return result


def _hsva(image: Image.Image) -> tuple[NDArray[np.float64], ...]:
    hsv = np.asarray(image.convert("RGB").convert("HSV"), dtype=np.float64)
    return (
        hsv[..., 0] / 255 * 360,
        hsv[..., 1] / 255,
        hsv[..., 2] / 255,
        np.asarray(image)[..., 3].astype(np.float64),
    )
