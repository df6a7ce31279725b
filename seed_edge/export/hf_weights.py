"""Reads tensors of a Hugging Face checkpoint one at a time, from one file or shards, safetensors or pickled.

A file is mapped, read for one tensor and unmapped again, so that memory holds one tensor, not a whole shard.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from seed_edge.display import shown
from seed_edge.errors import CheckpointError
from seed_edge.inputs import open_regular
from seed_edge.models.checkpoints import UNREADABLE, read_state, reason_of
from seed_edge.models.fields import Fields

SINGLE = ("model.safetensors", "pytorch_model.bin")
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.(?:safetensors|bin)")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Shards:
    """Shape and file of each tensor of a checkpoint."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Path]

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Find the weights of `folder`, single or sharded; safetensors are preferred to pickled files.

        Raises:
            CheckpointError: there are none, or an index names a file or a tensor that does not exist.
        """
        for single, index in zip(SINGLE, INDEXES, strict=True):
            if (folder / index).exists():
                return cls._from_index(folder, folder / index)
            if (folder / single).exists():
                shapes = shapes_in(folder / single)
                return cls(folder / single, shapes, dict.fromkeys(shapes, folder / single))
        raise CheckpointError(f"{folder} holds no weights ({', '.join((*SINGLE, *INDEXES))})")

    @classmethod
    def _from_index(cls, folder: Path, index: Path) -> Shards:
        try:
            weight_map = Fields.of(Fields.read(index).values.get("weight_map"), "weight_map").values
        except CheckpointError as error:
            raise CheckpointError(f"{index} is not an index of shards ({error})") from error
        for name, file in weight_map.items():
            if not isinstance(file, str) or not SHARD.fullmatch(PurePosixPath(file).name):
                raise CheckpointError(
                    f"{index} is not an index of shards ({shown(name)} is in {shown(file)}, "
                    "which is not a file name)"
                )
        # shards must lie beside the index
        files = {name: folder / PurePosixPath(file).name for name, file in weight_map.items()}
        if not files:
            raise CheckpointError(f"{index} is not an index of shards (it names no tensors)")
        shapes = {file: shapes_in(file) for file in sorted(set(files.values()))}
        for name, file in files.items():
            if name not in shapes[file]:
                raise CheckpointError(f"{file}: tensor {name} is missing, though {index.name} names it")
        return cls(index, {name: shapes[file][name] for name, file in files.items()}, files)

    def read(self, name: str) -> NDArray[np.float32]:
        """Return one tensor as float32."""
        file = self.files[name]
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name).to(torch.float32).numpy()
        # copied even if the file is float32, so that the file can be unmapped
        return read_state(file)[name].to(torch.float32, copy=True).numpy()


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a file, by name."""
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_state(file).items()}
    if not file.exists():
        raise CheckpointError(f"{file} is missing")
    open_regular(file, CheckpointError).close()
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except UNREADABLE as error:
        raise CheckpointError(f"{file} is damaged ({reason_of(error)}); copy or download it again") from error
