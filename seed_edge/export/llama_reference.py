"""Runs a LLaMA one layer at a time from its checkpoint, as the reference that exported files are compared
with.

The layers are those of transformers. Memory holds one of them, so models far larger than memory can be
compared.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from seed_edge.export.gguf import EMBEDDINGS, FINAL_NORM, HEAD, LAYER_TENSORS, LlamaFolder


@torch.inference_mode()
def logits(folder: LlamaFolder, ids: list[int]) -> NDArray[np.float32]:
    """Return the logits (len(ids), vocabulary) in fp32."""

    def read(name: str) -> Tensor:
        return torch.from_numpy(folder.read(name))

    config = LlamaConfig.from_dict(folder.config, attn_implementation="eager")
    x = read(EMBEDDINGS)[ids][None].clone()
    positions = torch.arange(len(ids))[None]
    rotations = LlamaRotaryEmbedding(config)(x, positions)
    mask = torch.full((1, 1, len(ids), len(ids)), float("-inf")).triu(1)
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, 0).eval()
    for i in range(config.num_hidden_layers):
        state = {f"{name}.weight": read(f"model.layers.{i}.{name}.weight") for name in LAYER_TENSORS}
        layer.load_state_dict(state, assign=True)
        x = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=rotations)
    norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
    norm.weight.copy_(read(FINAL_NORM))
    return (norm(x)[0] @ read(HEAD).T).numpy()
