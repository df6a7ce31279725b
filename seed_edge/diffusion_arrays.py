"""`image_noise.npz` of a bundle: the arrays of a diffusion, checked from the file's directory before anything
is unpacked.
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
"""Training steps of a diffusion."""
HEADER_ROOM = 4096
"""Bytes that a member's header may add to its data."""


def noise_arrays(path: Path, dim: int, steps_offset: int) -> dict[str, NDArray[np.float64]]:
    """Read the arrays.

    Args:
        dim: width of the image embeddings.
        steps_offset: added to timesteps, so that it must leave one within the table.

    Returns:
        `alphas_cumprod` (steps,), decreasing, in (0, 1); `mean` and `std` (dim,), `std` above 0;
        `noise_alpha` () in (0, 1].

    Raises:
        BundleError: a member is missing, unknown, packed in another way than numpy's, too large, or of
        another shape or range.
    """
    shapes = {"alphas_cumprod": None, "mean": (dim,), "std": (dim,), "noise_alpha": ()}
    try:
        with open_regular(path, BundleError) as file, zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if sorted(members) != sorted(f"{name}.npy" for name in shapes) or len(members) != len(
                archive.infolist()
            ):
                raise ValueError(f"its members are {', '.join(members)[:200]}")
            found = {name: _array(archive, members[f"{name}.npy"], shape) for name, shape in shapes.items()}
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
        raise BundleError(
            f"{path} does not hold the arrays of a diffusion ({error}); export again"
        ) from error
    problem = _problem(found, steps_offset)
    if problem:
        raise BundleError(f"{path} does not hold the arrays of a diffusion ({problem}); export again")
    return found


def _array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, shape: tuple[int, ...] | None
) -> NDArray[np.float64]:
    """One array of float32 or float64; of any length up to `MAX_STEPS` where `shape` is None."""
    count = MAX_STEPS if shape is None else math.prod(shape)
    if info.file_size > 8 * count + HEADER_ROOM or info.flag_bits & 1:
        raise ValueError(f"{info.filename} takes {info.file_size:,} bytes, or is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is packed by method {info.compress_type}")
    with archive.open(info) as member:
        data = member.read(info.file_size + 1)
    stream = io.BytesIO(data)
    found, kind = _header(stream)
    if kind not in (np.dtype("<f4"), np.dtype("<f8")) or (
        len(found) != 1 if shape is None else found != shape
    ):
        raise ValueError(f"{info.filename} is {kind} of shape {found}")
    if not 0 < math.prod(found) <= count or len(data) - stream.tell() != math.prod(found) * kind.itemsize:
        raise ValueError(f"{info.filename} has shape {found} and {len(data):,} bytes")
    return np.frombuffer(data, kind, offset=stream.tell()).reshape(found).astype(np.float64)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = npy.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"an array of format {version}")
    shape, _, kind = npy.read_array_header_1_0(stream)
    return shape, kind


def _problem(arrays: dict[str, NDArray[np.float64]], steps_offset: int) -> str:
    """What is wrong with the values, or an empty text."""
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return "a value is not finite"
    alphas = arrays["alphas_cumprod"]
    if not (alphas[-1] > 0 and alphas[0] < 1 and (np.diff(alphas) < 0).all()):
        return "alphas_cumprod does not decrease within (0, 1)"
    if steps_offset >= len(alphas):
        return f"steps_offset {steps_offset} lies beyond the {len(alphas)} steps of alphas_cumprod"
    if arrays["std"].min() <= 0 or np.abs(arrays["mean"]).max() > 1e6 or arrays["std"].max() > 1e6:
        return "mean or std are out of range"
    return "" if 0 < float(arrays["noise_alpha"]) <= 1 else "noise_alpha lies outside (0, 1]"
