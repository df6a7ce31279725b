"""Tensors of a Hugging Face checkpoint folder, one at a time, whatever the number and format of its files.

Files are mapped, read for one tensor and unmapped again, so that memory holds one tensor and not one shard.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from seed_edge.errors import CheckpointError
from seed_edge.models.checkpoints import read_state

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Shards:
    """Where each tensor of a checkpoint is."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Path]

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Find the weights of `folder`, single or sharded, safetensors before pickled.

        Raises:
            CheckpointError: there are none, or an index names a file or a tensor that is not there.
        """
        for single, index in zip(SINGLE, INDEXES, strict=True):
            if (folder / index).is_file():
                return cls._from_index(folder, folder / index)
            if (folder / single).is_file():
                shapes = shapes_in(folder / single)
                return cls(folder / single, shapes, dict.fromkeys(shapes, folder / single))
        raise CheckpointError(f"{folder} holds no weights ({', '.join((*SINGLE, *INDEXES))})")

    @classmethod
    def _from_index(cls, folder: Path, index: Path) -> Shards:
        try:
            where = json.loads(index.read_text("utf-8"))["weight_map"]
            files = {str(name): folder / Path(str(file)).name for name, file in where.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is no index of shards ({error!r})") from error
        found = {file: shapes_in(file) for file in sorted(set(files.values()))}
        for name, file in files.items():
            if name not in found[file]:
                raise CheckpointError(f"{file}: tensor {name} is missing, though {index.name} names it")
        return cls(index, {name: found[file][name] for name, file in files.items()}, files)

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32."""
        file = self.files[name]
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name).to(torch.float32).numpy()
        # a copy even where the file is float32 already: the mapping must go away
        return read_state(file)[name].to(torch.float32, copy=True).numpy()


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a file."""
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_state(file).items()}
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); copy or download it again") from error
