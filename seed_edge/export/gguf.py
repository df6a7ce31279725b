"""Converts a LLaMA in Hugging Face's layout, with codes in its vocabulary, to one GGUF file.

Tensors are read and written one at a time. Ids are read from the files, never assumed. Codes, BOI and
Tensors are read and written one at a time. Ids are read from the files, never assumed. Codes, BOI and
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
from numpy.typing import NDArray

from seed_edge.errors import CheckpointError
from seed_edge.export.hf_weights import Shards
from seed_edge.export.lora import Lora
from seed_edge.models.llama_files import PIECES_FILE, read_added_tokens, read_config, read_pieces, vocab_of
from seed_edge.vocab import Vocab

WEIGHT_TYPES = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "BF16": gguf.GGMLQuantizationType.BF16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
}
FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
NOT_WEIGHTS = ("rotary_emb.inv_freq",)
"""Tensors of old checkpoints that are not weights: they follow from the configuration."""
EMBEDDINGS, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYER_TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TENSORS = {
    EMBEDDINGS: "token_embd.weight",
    FINAL_NORM: "output_norm.weight",
    HEAD: "output.weight",
}


@dataclass(frozen=True)
class LlamaFolder:
    """A checkpoint folder whose small files were read."""

    path: Path
    tokenizer: Path
    """Folder of the tokenizer's files; the published instruction-tuned models contain none."""
    config: dict[str, Any]
    pieces: sentencepiece.SentencePieceProcessor
    added: dict[str, int]
    lora: Lora | None = None

    @classmethod
    def open(cls, path: Path, tokenizer: Path | None = None, lora: Path | None = None) -> LlamaFolder:
        """Read configuration, tokenizer, added tokens and adapter.

        Args:
            tokenizer: folder with `tokenizer.model` and `added_tokens.json`, used if `path` has none.
            lora: folder of an adapter that is merged into the weights as they are read.

        Raises:
            CheckpointError: a file is missing or unreadable.
        """
        folder = path if tokenizer is None or (path / PIECES_FILE).is_file() else tokenizer
        pieces = read_pieces(folder)
        config, adapter = read_config(path), None
        if lora is not None:
            adapter = Lora.open(lora)
            # fine-tuning may have added rows for the codes
            rows = adapter.shape(EMBEDDINGS, (int(config["vocab_size"]),))[0]
            config = config | {"vocab_size": rows}
        return cls(path, folder, config, pieces, read_added_tokens(folder), adapter)

    @cached_property
    def _shards(self) -> Shards:
        return Shards.open(self.path)

    @property
    def weights_path(self) -> Path:
        """Path of the weights, or of the index of their shards."""
        return self._shards.path

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that `read` returns, by name.

        Raises:
            CheckpointError: there are no weights, or the adapter changes tensors that do not exist.
        """
        shapes = {
            name: shape for name, shape in self._shards.shapes.items() if not name.endswith(NOT_WEIGHTS)
        }
        if self.lora is None:
            return shapes
        self.lora.check(shapes)
        return {name: self.lora.shape(name, shape) for name, shape in shapes.items()}

    def read(self, name: str) -> NDArray[np.float32]:
        """Return one tensor, with the adapter merged."""
        if self.lora is None:
            return self._shards.read(name)
        return self.lora.merged(name, lambda: self._shards.read(name))

    def file_of(self, name: str) -> Path:
        """Return the file that contains a tensor."""
        return (
            self.lora.path if self.lora is not None and name in self.lora.whole else self._shards.files[name]
        )

    @property
    def context_length(self) -> int:
        """Context length, in ids."""
        return int(self.config["max_position_embeddings"])

    def file_name(self, weight_type: str) -> str:
        """Return a name by the GGUF naming convention: `seed-llama-8b-sft-6.8B-Q4_K_M.gguf`."""
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", self.path.resolve().name).strip("-.")[:60] or "llama"
        size = gguf.size_label(sum(prod(shape) for shape in self.shapes().values()), 0, 0, 0)
        return f"{gguf.naming_convention(None, base, None, None, size, weight_type)}.gguf"

    def corrections(self) -> list[str]:
        """Return a message for each value of the configuration that is wrong and was corrected."""
        messages = []
        for name, actual in (("bos_token_id", self.pieces.bos_id()), ("eos_token_id", self.pieces.eos_id())):
            configured = self.config.get(name, actual)
            if configured != actual:
                messages.append(
                    f"config.json says {name} {configured}, the tokenizer {actual}; "
                    "the tokenizer's is written"
                )
        return messages

    def vocab(self, codes_per_image: int) -> Vocab:
        """Return the ids of text and codes, from `added_tokens.json`.

        Raises:
            CheckpointError: codes are not contiguous, BOI or EOI is missing, ids overlap or leave gaps.
        """
        return vocab_of(
            self.added, self.pieces, int(self.config["vocab_size"]), codes_per_image, self.tokenizer
        )


def gguf_names(layers: int) -> dict[str, str]:
    """Return the GGUF tensor name of each Hugging Face tensor name."""
    names = dict(TENSORS)
    for i in range(layers):
        for hf_name, gguf_name in LAYER_TENSORS.items():
            names[f"model.layers.{i}.{hf_name}.weight"] = f"blk.{i}.{gguf_name}.weight"
    return names


def permute(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Bring rows of q or k from halves to pairs per head: llama.cpp rotates neighbouring rows."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(folder: LlamaFolder, vocab: Vocab, path: Path, weight_type: str, name: str) -> None:
    """Convert a checkpoint folder to a GGUF file at `path`.

    Args:
        weight_type: type of matrices; norms are always F32.

    Raises:
        CheckpointError: a tensor is missing, surplus, or of the wrong shape.
    """
    config = folder.config
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    layers, width = int(config["num_hidden_layers"]), int(config["hidden_size"])
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[weight_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_freq_base(float(config.get("rope_theta", 10000.0)))
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(vocab.size)
    add_tokens(writer, folder, vocab)
    tensors = list(read_tensors(folder, heads, kv_heads))
    kinds = {
        tensor: WEIGHT_TYPES[weight_type] if len(shape) == 2 else WEIGHT_TYPES["F32"]
        for tensor, shape, _ in tensors
    }
    for tensor, shape, _ in tensors:
        stored = gguf.quant_shape_to_byte_shape(shape, kinds[tensor])
        size = int(np.prod(stored))
        writer.add_tensor_info(tensor, stored, np.dtype(np.uint8), size, raw_dtype=kinds[tensor])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, _, read in tensors:
        writer.write_tensor_data(gguf.quants.quantize(read(), kinds[tensor]))
    writer.close()


def add_tokens(writer: gguf.GGUFWriter, folder: LlamaFolder, vocab: Vocab) -> None:
    """Write the vocabulary: text pieces with their scores, then added tokens as control tokens."""
    pieces = folder.pieces
    tokens, scores, types = [], [], []
    for i in range(pieces.get_piece_size()):
        kind = gguf.TokenType.NORMAL
        if pieces.is_unknown(i):
            kind = gguf.TokenType.UNKNOWN
        elif pieces.is_control(i):
            kind = gguf.TokenType.CONTROL
        elif pieces.is_byte(i):
            kind = gguf.TokenType.BYTE
        tokens.append(pieces.id_to_piece(i).encode())
        scores.append(pieces.get_score(i))
        types.append(kind)
    for token, _ in sorted(folder.added.items(), key=lambda item: item[1]):
        tokens.append(token.encode())
        scores.append(-1000.0)
        types.append(gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(vocab.bos_id)
    writer.add_eos_token_id(vocab.eos_id)
    writer.add_unk_token_id(pieces.unk_id())
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_uint32("seed.first_code_id", vocab.first_code_id)
    writer.add_uint32("seed.codebook_size", vocab.codebook_size)
    writer.add_uint32("seed.codes_per_image", vocab.codes_per_image)
    writer.add_uint32("seed.boi_id", vocab.boi_id)
    writer.add_uint32("seed.eoi_id", vocab.eoi_id)


def read_tensors(
    folder: LlamaFolder, heads: int, kv_heads: int
) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Yield GGUF name, shape and reader of each tensor; a reader loads its tensor as float32 when called."""
    config, shapes = folder.config, folder.shapes()
    names = gguf_names(int(config["num_hidden_layers"]))
    if set(shapes) != set(names):
        missing, surplus = sorted(set(names) - set(shapes)), sorted(set(shapes) - set(names))
        raise CheckpointError(
            f"{folder.weights_path}: missing tensors {missing[:3]}, unknown tensors {surplus[:3]}"
        )
    for hf_name, gguf_name in names.items():
        expected_shape = _expected_shape(gguf_name, config, heads, kv_heads)
        if shapes[hf_name] != expected_shape:
            raise CheckpointError(
                f"{folder.file_of(hf_name)}: {hf_name} has shape {shapes[hf_name]}, config.json asks for "
                f"{expected_shape}"
            )
        rotary_heads = rotary_heads_of(gguf_name, heads, kv_heads)

        def read(hf_name: str = hf_name, rotary_heads: int = rotary_heads) -> NDArray[np.float32]:
            weight = folder.read(hf_name)
            return np.ascontiguousarray(permute(weight, rotary_heads)) if rotary_heads else weight

        yield gguf_name, expected_shape, read


def rotary_heads_of(gguf_name: str, heads: int, kv_heads: int) -> int:
    """Return the number of heads of a tensor whose rows `permute` reorders; 0 for all other tensors."""
    return (
        heads
        if gguf_name.endswith("attn_q.weight")
        else kv_heads
        if gguf_name.endswith("attn_k.weight")
        else 0
    )


def _expected_shape(name: str, config: dict[str, Any], heads: int, kv_heads: int) -> tuple[int, ...]:
    width, mlp = int(config["hidden_size"]), int(config["intermediate_size"])
    keys = width // heads * kv_heads
    kind = name.split(".")[-2]
    if kind in ("token_embd", "output"):
        return (int(config["vocab_size"]), width)
    if kind in ("ffn_gate", "ffn_up"):
        return (mlp, width)
    if kind == "ffn_down":
        return (width, mlp)
    if kind in ("attn_k", "attn_v"):
        return (keys, width)
    if kind in ("attn_q", "attn_output"):
        return (width, width)
    return (width,)
