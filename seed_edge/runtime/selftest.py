"""The self-test of a bundle: `verify` compares codes and decoded values of a computed image with the
manifest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError
from seed_edge.manifest import SelfTest
from seed_edge.runtime.image_tokenizer import ImageTokenizer
from seed_edge.runtime.isolated_load import check_all_parts
from seed_edge.runtime.onnx_session import Device

VALUES = 16
"""Number of decoded values in the manifest."""
MIN_EQUAL_CODES = 0.9
"""Minimum fraction of equal codes; processors may round two nearly equal distances differently."""
MAX_RELATIVE_ERROR = 0.02


def pattern(size: int) -> NDArray[np.uint8]:
    """A smooth coloured image (size, size, 3); equal on every machine: computed with integers."""
    y, x = np.mgrid[0:size, 0:size].astype(np.int64)
    red, green = x * 255 // size, y * 255 // size
    blue = ((x - size // 2) ** 2 + (y - size // 2) ** 2) * 255 // (size * size // 2)
    return np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8)


def measure(bundle: Bundle, device: Device) -> SelfTest:
    """Codes of the pattern, and some values of the decoder's output for them."""
    images = ImageTokenizer(bundle, device)
    preprocessing = bundle.manifest.preprocessing
    codes = images.encode_values(preprocessing.normalise(pattern(preprocessing.image_size)[None]))
    decoded = images.run_decoder(codes).reshape(-1)
    values = decoded[:: max(1, len(decoded) // VALUES)][:VALUES]
    return SelfTest(tuple(codes[0].tolist()), tuple(round(float(value), 5) for value in values))


def verify(bundle: Bundle, device: Device) -> str:
    """Check all hashes, test all parts in a child process, and repeat the self-test; return a summary in one
    line.

    Raises:
        BundleError: a hash differs, a part fails or crashes the child, or outputs differ from the manifest.
    """
    bundle.check_hashes()
    check_all_parts(bundle)
    expected = bundle.manifest.self_test
    if expected is None:
        raise BundleError(f"{bundle.path} was exported without a self-test; export again")
    actual = measure(bundle, device)
    equal = float(np.mean(np.array(actual.codes) == np.array(expected.codes)))
    scale = max(1.0, float(np.abs(expected.decoded).max()))
    error = float(np.abs(np.array(actual.decoded) - np.array(expected.decoded)).max()) / scale
    if equal < MIN_EQUAL_CODES or (equal == 1 and error > MAX_RELATIVE_ERROR):
        raise BundleError(
            f"{bundle.path}: {equal:.0%} of the self-test's codes are equal and values differ by "
            f"{error:.2g}; this machine or its ONNX Runtime computes different results"
        )
    size = sum(entry.size for entry in bundle.manifest.files.values())
    return (
        f"{len(bundle.manifest.files)} files, {size:,} bytes: hashes equal; self-test: {equal:.0%} of "
        "codes equal"
    )
