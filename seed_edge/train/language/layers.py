"""Changes to a whole model: inserted layers, and weights interpolated with earlier ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM


def add_layers(model: LlamaForCausalLM, count: int) -> None:
    """Insert `count` layers at even distances, in place; the output of the model does not change.

    Each is a copy of the layer before it with zero output projections (Wu et al. 2024, arXiv:2401.02415).
    """
    layers = list(model.model.layers)
    after = [math.ceil((number + 1) * len(layers) / count) - 1 for number in range(count)]
    grown = []
    for index, layer in enumerate(layers):
        grown.append(layer)
        for _ in range(after.count(index)):
            copied = copy.deepcopy(layer)
            for projection in (copied.self_attn.o_proj, copied.mlp.down_proj):
                nn.init.zeros_(projection.weight)
            grown.append(copied)
    for index, layer in enumerate(grown):
        layer.self_attn.layer_idx = index
    model.model.layers = nn.ModuleList(grown)
    model.config.num_hidden_layers = len(grown)


def trainable_weights(model: nn.Module) -> list[Tensor]:
    """Return copies of the trainable parameters, in the order of `model.parameters()`."""
    return [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]


@contextmanager
def interpolated(model: nn.Module, share: float, before: Sequence[Tensor]) -> Iterator[None]:
    """Within the context, trained parameters are `share * before + (1 - share) * current`; afterwards they
    are restored.

    Args:
        share: in [0, 1].
        before: earlier values, as `trainable_weights` returns them.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    current = trainable_weights(model)
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.lerp_(old.to(parameter.device), share)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, current, strict=True):
                parameter.copy_(value)
