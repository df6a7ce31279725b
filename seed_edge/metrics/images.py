"""Pixel metrics of two images: PSNR and SSIM."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SSIM_RADIUS, SSIM_K1, SSIM_K2 = 1.5, 0.01, 0.03


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two images of one size, in dB; infinite for equal images."""
    error = np.mean((_array(a) - _array(b)) ** 2)
    return float(-10 * np.log10(error)) if error else float("inf")


def ssim(a: Image.Image, b: Image.Image) -> float:
    """Return the structural similarity (Wang et al. 2004) of the luminance of two images of one size, in [-1,
    1].

    The Gaussian window has a standard deviation of 1.5 pixels.
    """
    x, y = (np.asarray(image.convert("F"), np.float64) / 255 for image in (a.convert("L"), b.convert("L")))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))


def _array(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("RGB"), np.float64) / 255


def _blurred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / SSIM_RADIUS) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(values, 5, mode="reflect")
    rows = np.apply_along_axis(np.convolve, 0, padded, kernel, "valid")
    return np.apply_along_axis(np.convolve, 1, rows, kernel, "valid")
