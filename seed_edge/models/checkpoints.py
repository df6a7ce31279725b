"""Reads and writes checkpoints of image tokenizers; every tensor must be present, with its exact shape.

Two layouts: that of `seed-edge train`, and the official one of SEED-2 (`seed_quantizer.pt` with
`eva_vit_g.pth`, or one merged file). Pickled files are always read with `weights_only=True`.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seed_edge.atomic import replacing
from seed_edge.display import printable
from seed_edge.errors import CheckpointError
from seed_edge.inputs import open_regular
from seed_edge.models.config import FILE as GEOMETRY_FILE
from seed_edge.models.config import PixelGeometry, SeedGeometry, load_geometry
from seed_edge.models.image_tokenizer import ImageTokenizer, PixelTokenizer, SeedTokenizer
from seed_edge.models.qformer import causal_mask

IMAGE_TOKENIZER_FILE = "image_tokenizer.safetensors"
QUANTIZER_FILES = (
    "seed_quantizer.pt",
    "seed_quantizer.safetensors",
    "seed_quantizer.bin",
    "seed2.safetensors",
    "model.safetensors",
)
"""File names of SEED-2's tokenizer, without the ViT; the first that exists is read."""
VIT_FILES = ("eva_vit_g.pth", "eva_vit_g.pt", "eva_vit_g.safetensors")
VIT_PREFIX = "visual_encoder."
MAX_PICKLE_BYTES = 64 << 20
"""Maximum size of the pickle within a checkpoint, which describes the tensors but does not contain their
values.
"""
MAX_MEMBERS = 1 << 17
"""Maximum number of files in the zip archive of a pickled checkpoint, one for each tensor."""
UNREADABLE = (
    OSError,
    SafetensorError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    MemoryError,
    struct.error,
)
"""Exceptions of torch, safetensors and transformers for damaged files."""


def save_image_tokenizer(model: PixelTokenizer, folder: Path) -> None:
    """Write weights and `geometry.json` into `folder`; the weights appear only when complete."""
    folder.mkdir(parents=True, exist_ok=True)
    model.geometry.save(folder)
    with replacing(folder / IMAGE_TOKENIZER_FILE) as partial:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial)


def is_run(folder: Path) -> bool:
    """Whether a folder holds an image tokenizer that `save_image_tokenizer` wrote."""
    return (folder / IMAGE_TOKENIZER_FILE).is_file()


def reason_of(error: BaseException) -> str:
    """First line of the message of an error, or the name of its class if the message is empty."""
    lines = str(error).strip().splitlines()
    return printable(lines[0][:200]) if lines else type(error).__name__


def check_not_inflated(path: Path) -> None:
    """Check that a pickled checkpoint takes no more memory than its size on disk; PyTorch never compresses.

    Raises:
        CheckpointError: it is not a regular file or not a zip archive, or its members are compressed, overlap
            or are too many.
    """
    with open_regular(path, CheckpointError) as file:
        size = file.seek(0, 2)
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except (
            zipfile.BadZipFile,
            OSError,
            ValueError,
            NotImplementedError,
            LookupError,
            struct.error,
        ) as error:
            raise CheckpointError(
                f"{path} is damaged or in another format ({reason_of(error)}); copy or download it again"
            ) from error
    compressed = any(
        member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size
        for member in members
    )
    if compressed or len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > size:
        raise CheckpointError(
            f"{path} is damaged or in another format (its parts are compressed); save it with PyTorch"
        )
    if any(member.file_size > MAX_PICKLE_BYTES for member in members if member.filename.endswith(".pkl")):
        raise CheckpointError(
            f"{path} is damaged or in another format (its index is too large); save it with PyTorch"
        )


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Return all tensors of a file by name, memory-mapped where the format allows; only tensors are
    unpickled.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything but named tensors.
    """
    if not path.exists():
        raise CheckpointError(f"{path} is missing")
    try:
        if path.suffix == ".safetensors":
            open_regular(path, CheckpointError).close()
            return load_file(path)
        check_not_inflated(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and was not unpickled ({reason_of(error)})"
        ) from error
    except UNREADABLE as error:
        raise CheckpointError(
            f"{path} is damaged or in another format ({reason_of(error)}); copy or download it again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]  # the wrapper of LAVIS
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is not a dictionary of tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise CheckpointError(
                f"{path}: {printable(str(name)[:100])} is not a plain tensor with all its values in the file"
            )
    return state


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, on the CPU, and its storage holds all of its values."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )


@dataclass(frozen=True)
class Source:
    """A state dict and the file it came from."""

    state: Mapping[str, Tensor]
    path: Path


def assign(model: ImageTokenizer, parts: Mapping[str, Source]) -> int:
    """Assign tensors to `model`, which is on the meta device; return the number of tensors that are not used.

    Args:
        parts: prefix of parameter names -> source of these parameters, named without the prefix; the longest
            matching prefix is used.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
    """
    state, used = {}, 0
    for name, expected in model.state_dict().items():
        prefix = max((p for p in parts if name.startswith(p)), key=len)
        source, short_name = parts[prefix], name[len(prefix) :]
        tensor = source.state.get(short_name)
        if tensor is None:
            raise CheckpointError(f"{source.path}: tensor {short_name} is missing")
        if tensor.shape != expected.shape:
            shapes = f"{tuple(tensor.shape)}, the geometry asks for {tuple(expected.shape)}"
            raise CheckpointError(f"{source.path}: tensor {short_name} has shape {shapes}")
        state[name], used = tensor.to(expected.dtype), used + 1
    model.load_state_dict(state, assign=True)
    model.Qformer.causal = causal_mask(model.query_tokens.shape[1])
    return sum(len(source.state) for source in parts.values()) - used


def load_image_tokenizer(folder: Path) -> PixelTokenizer:
    """Read a checkpoint that `save_image_tokenizer` wrote, in eval mode.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing, surplus or of another shape.
    """
    geometry = load_geometry(folder)
    if not isinstance(geometry, PixelGeometry):
        raise CheckpointError(f"{folder / GEOMETRY_FILE} describes SEED-2, not a run of `seed-edge train`")
    path = folder / IMAGE_TOKENIZER_FILE
    with torch.device("meta"):
        model = PixelTokenizer(geometry)
    source = Source(read_state(path), path)
    surplus = assign(model, {"": source})
    if surplus:
        first = min(set(source.state) - set(model.state_dict()))
        raise CheckpointError(f"{path}: {surplus} tensors are not part of the model, first {first}")
    return model.eval()


def find_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the path of the first of `names` that is a file in `folder`, or None."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def find_seed_tokenizer(folder: Path, vit: Path | None) -> tuple[SeedGeometry, Path, Path | None]:
    """Return the geometry, the main file and the ViT's file, if it is separate, of a SEED-2 tokenizer;
    weights are not read.

    Raises:
        CheckpointError: the main file is missing, or the geometry is that of another kind.
    """
    geometry = load_geometry(folder) if (folder / GEOMETRY_FILE).exists() else SeedGeometry()
    if not isinstance(geometry, SeedGeometry):
        raise CheckpointError(f"{folder / GEOMETRY_FILE} does not describe SEED-2")
    path = find_file(folder, QUANTIZER_FILES)
    if path is None:
        raise CheckpointError(
            f"{folder} holds none of {', '.join(QUANTIZER_FILES)}; --ckpt takes SEED-2's tokenizer folder"
        )
    return geometry, path, vit or find_file(folder, VIT_FILES)


def load_seed_tokenizer(
    folder: Path, vit: Path | None, report: Callable[[str], None], training: bool = False
) -> SeedTokenizer:
    """Read SEED-2's tokenizer from an official layout, in eval mode, as fp32.

    Args:
        folder: contains `seed_quantizer.pt` or a merged file, and optionally `geometry.json` and the ViT.
        vit: the file `eva_vit_g.pth`; the default is the one in `folder`.
        training: include the branch that only training uses.

    Raises:
        CheckpointError: a part is missing or damaged, or a tensor is missing or of another shape.
    """
    geometry, path, vit = find_seed_tokenizer(folder, vit)
    main = Source(read_state(path), path)
    parts = {"": main}
    if vit is not None:
        parts[VIT_PREFIX] = Source(read_state(vit), vit)
    elif not any(name.startswith(VIT_PREFIX) for name in main.state):
        raise CheckpointError(
            f"{folder} holds no {VIT_FILES[0]}, and {path.name} has no {VIT_PREFIX}*; give it with --vit"
        )
    with torch.device("meta"):
        model = SeedTokenizer(geometry, training)
    unused = assign(model, parts)
    report(f"image tokenizer: {len(model.state_dict())} tensors read, {unused} in the files not used")
    return model.eval()
