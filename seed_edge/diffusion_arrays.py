"""Reads `image_noise.npz` of a bundle, the arrays of a diffusion; the zip directory is checked before
anything is decompressed.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from seed_edge.errors import BundleError, SeedEdgeError
from seed_edge.inputs import open_regular

MAX_STEPS = 10_000
"""Maximum number of training steps of a diffusion."""
MAX_HEADER_BYTES = 4096
"""Maximum size in bytes of the npy header of a member."""


def read_noise_arrays(path: Path, dim: int, steps_offset: int) -> dict[str, NDArray[np.float64]]:
    """Read and check the arrays.

    Args:
        dim: width of the image embeddings.
        steps_offset: offset of the timesteps; must be below the number of training steps.

    Returns:
        `alphas_cumprod` (steps,), decreasing, in (0, 1); `mean` and `std` (dim,), `std` above 0;
        `noise_alpha` () in (0, 1].

    Raises:
        BundleError: an array is missing, unknown, not in numpy's format, too large, or of the wrong shape or
            range.
    """
    shapes = {"alphas_cumprod": None, "mean": (dim,), "std": (dim,), "noise_alpha": ()}
    try:
        with open_regular(path, BundleError) as file, zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if sorted(members) != sorted(f"{name}.npy" for name in shapes) or len(members) != len(
                archive.infolist()
            ):
                raise ValueError(f"its members are {', '.join(members)[:200]}")
            arrays = {name: _array(archive, members[f"{name}.npy"], shape) for name, shape in shapes.items()}
    except SeedEdgeError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise BundleError(f"{path} is not a valid noise schedule file ({error}); export again") from error
    problem = _problem(arrays, steps_offset)
    if problem:
        raise BundleError(f"{path} is not a valid noise schedule file ({problem}); export again")
    return arrays


def _array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, shape: tuple[int, ...] | None
) -> NDArray[np.float64]:
    """One array of float32 or float64; one-dimensional of up to `MAX_STEPS` elements if `shape` is None."""
    count = MAX_STEPS if shape is None else math.prod(shape)
    if info.file_size > 8 * count + MAX_HEADER_BYTES or info.flag_bits & 1:
        raise ValueError(f"{info.filename} takes {info.file_size:,} bytes, or is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} has compression method {info.compress_type}")
    with archive.open(info) as member:
        data = member.read(info.file_size + 1)
    stream = io.BytesIO(data)
    stored, dtype = _header(stream)
    if dtype not in (np.dtype("<f4"), np.dtype("<f8")) or (
        len(stored) != 1 if shape is None else stored != shape
    ):
        raise ValueError(f"{info.filename} is {dtype} of shape {stored}")
    if not 0 < math.prod(stored) <= count or len(data) - stream.tell() != math.prod(stored) * dtype.itemsize:
        raise ValueError(f"{info.filename} has shape {stored} and {len(data):,} bytes")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(stored).astype(np.float64)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type of an array."""
    version = npy.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"npy format {version}")
    shape, _, dtype = npy.read_array_header_1_0(stream)
    return shape, dtype


def _problem(arrays: dict[str, NDArray[np.float64]], steps_offset: int) -> str:
    """The first problem of the values, or an empty string."""
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return "a value is not finite"
    alphas = arrays["alphas_cumprod"]
    if not (alphas[-1] > 0 and alphas[0] < 1 and (np.diff(alphas) < 0).all()):
        return "alphas_cumprod does not decrease within (0, 1)"
    if steps_offset >= len(alphas):
        return f"steps_offset {steps_offset} is not below the {len(alphas)} steps of alphas_cumprod"
    if arrays["std"].min() <= 0 or np.abs(arrays["mean"]).max() > 1e6 or arrays["std"].max() > 1e6:
        return "mean or std are out of range"
    return "" if 0 < float(arrays["noise_alpha"]) <= 1 else "noise_alpha lies outside (0, 1]"
