"""LoRA adapters in PEFT's layout, merged into the base weights one tensor at a time.

Source: Hu et al. 2021, arXiv:2106.09685; scaling for `use_rslora` from Kalajdzievski 2023, arXiv:2312.03732.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seed_edge.display import printable
from seed_edge.errors import CheckpointError
from seed_edge.models.checkpoints import read_state
from seed_edge.models.fields import Fields

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+?)(?:\.(?P<half>lora_[AB])(?:\.default)?|\.modules_to_save(?:\.default)?)?\.weight"
)
MAX_ALPHA = 1e6
SUPPORTED_VALUES = {"use_dora": False, "fan_in_fan_out": False, "bias": "none", "alpha_pattern": {}}
"""Settings of PEFT that change how an adapter is merged, with the only supported value of each."""


@dataclass(frozen=True)
class Lora:
    """An opened adapter: low-rank updates, and tensors that were trained in full."""

    path: Path
    pairs: dict[str, tuple[Tensor, Tensor]]
    """Tensor name -> B (rows, r) and A (r, columns)."""
    whole: dict[str, Tensor]
    """Tensor name -> tensor that replaces it, in the stored type."""
    scales: dict[str, float]
    """Tensor name -> factor of the product B A."""

    @classmethod
    def open(cls, folder: Path) -> Lora:
        """Read an adapter.

        Raises:
            CheckpointError: a file is missing or damaged, or a setting or a tensor is not supported.
        """
        config = _read_config(folder / CONFIG)
        path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if path is None:
            raise CheckpointError(
                f"{folder} holds none of {', '.join(WEIGHTS)}; --lora takes a folder that PEFT wrote"
            )
        halves: dict[str, dict[str, Tensor]] = {}
        whole = {}
        for key, tensor in read_state(path).items():
            match = TENSOR.fullmatch(key)
            if match is None:
                raise CheckpointError(f"{path}: {key} is not part of a plain LoRA and cannot be merged")
            name = f"{match['module']}.weight"
            if match["half"]:
                halves.setdefault(name, {})[match["half"]] = tensor
            else:
                whole[name] = tensor
        pairs = {name: _pair(path, name, half) for name, half in halves.items()}
        return cls(path, pairs, whole, {name: _scale(config, rank=len(a)) for name, (_, a) in pairs.items()})

    def check(self, names: Iterable[str]) -> None:
        """Check that the adapter changes no tensors other than `names`.

        Raises:
            CheckpointError: it does; the message names the first such tensor.
        """
        unknown = (set(self.pairs) | set(self.whole)) - set(names)
        if unknown:
            raise CheckpointError(
                f"{self.path} changes {min(unknown)}, which the language model does not have"
            )

    def shape(self, name: str, base: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a tensor after the merge; one trained in full may have rows for the codes."""
        return tuple(self.whole[name].shape) if name in self.whole else base

    def merged(self, name: str, read: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the merged tensor `name`, float32.

        Args:
            read: returns the tensor of the base model; not called if the adapter replaces it.

        Raises:
            CheckpointError: the adapter was made for a tensor of another shape.
        """
        if name in self.whole:
            return self.whole[name].to(torch.float32).numpy()
        weight = read()
        if name not in self.pairs:
            return weight
        b, a = (half.to(torch.float32).numpy() for half in self.pairs[name])
        if (len(b), a.shape[1]) != weight.shape:
            raise CheckpointError(
                f"{self.path}: {name} has shape {(len(b), a.shape[1])}, the base model's has {weight.shape}"
            )
        return weight + np.float32(self.scales[name]) * (b @ a)


def _pair(path: Path, name: str, halves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    matching = set(halves) == {"lora_A", "lora_B"} and all(
        half.ndim == 2 and half.numel() > 0 for half in halves.values()
    )
    if not matching or halves["lora_A"].shape[0] != halves["lora_B"].shape[1]:
        raise CheckpointError(
            f"{path}: the two halves of {name} are missing or do not fit; copy the adapter again"
        )
    return halves["lora_B"], halves["lora_A"]


def _scale(config: dict[str, Any], rank: int) -> float:
    return float(config["lora_alpha"]) / (rank**0.5 if config["use_rslora"] else rank)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{path} is missing; --lora takes a folder that PEFT wrote")
    fields = Fields.read(path)
    config = dict(fields.values)
    if config.get("peft_type") != "LORA" or "lora_alpha" not in config:
        raise CheckpointError(f"{path} is not that of a LoRA adapter; other kinds cannot be merged")
    for name, supported in SUPPORTED_VALUES.items():
        if (config.get(name) or supported) != supported:
            raise CheckpointError(
                f"{path}: {name} {printable(str(config[name])[:40])} cannot be merged here; merge it "
                "with PEFT first"
            )
    return config | {
        "lora_alpha": fields.number("lora_alpha", -MAX_ALPHA, MAX_ALPHA),
        "use_rslora": fields.flag("use_rslora", default=False),
    }
