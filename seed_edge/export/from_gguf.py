"""Converts the language model of a bundle back to a folder in Hugging Face's layout, for further training.

Weights keep the rounding of the quantized file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2 as proto

from seed_edge.atomic import replacing
from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError
from seed_edge.export.gguf import gguf_names, rotary_heads_of
from seed_edge.models.llama_files import CONFIG_FILE, PIECES_FILE, TEMPLATE, write_added_tokens
from seed_edge.output_checks import prepare_output_folder
from seed_edge.prompts import template_name
from seed_edge.vocab import Vocab

WEIGHTS_FILE = "model.safetensors"
PIECE_TYPES = {
    gguf.TokenType.NORMAL: proto.ModelProto.SentencePiece.NORMAL,
    gguf.TokenType.UNKNOWN: proto.ModelProto.SentencePiece.UNKNOWN,
    gguf.TokenType.CONTROL: proto.ModelProto.SentencePiece.CONTROL,
    gguf.TokenType.BYTE: proto.ModelProto.SentencePiece.BYTE,
}


def unpack_language(bundle: Bundle, out: Path) -> None:
    """Write config, weights as fp32, text pieces and added tokens into `out`.

    Raises:
        BundleError: the bundle has no language model, or one of another architecture.
    """
    prepare_output_folder(out, "model", [bundle.path])
    vocab, path = bundle.language.vocab, bundle.language_model
    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        value = reader.get_field(name)
        if value is None:
            raise BundleError(
                f"{path} has no {name}; only LLaMA files that `seed-edge export` wrote can be unpacked"
            )
        return value.contents()

    if field("general.architecture") != "llama":
        raise BundleError(f"{path} is {field('general.architecture')}, not llama")
    heads, layers = int(field("llama.attention.head_count")), int(field("llama.block_count"))
    kv_heads = int(field("llama.attention.head_count_kv"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab.size,
        "hidden_size": int(field("llama.embedding_length")),
        "intermediate_size": int(field("llama.feed_forward_length")),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": int(field("llama.context_length")),
        "rms_norm_eps": float(field("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(field("llama.rope.freq_base")),
        "bos_token_id": vocab.bos_id,
        "eos_token_id": vocab.eos_id,
        "tie_word_embeddings": False,
    }
    family = template_name(bundle.language.prompts)
    if family is not None:
        config[TEMPLATE] = family
    stored = {tensor.name: tensor for tensor in reader.tensors}
    weights = {}
    for hf_name, gguf_name in gguf_names(layers).items():
        if gguf_name not in stored:
            raise BundleError(f"{path} has no tensor {gguf_name}")
        tensor = stored[gguf_name]
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        rotary_heads = rotary_heads_of(gguf_name, heads, kv_heads)
        weights[hf_name] = torch.from_numpy(
            np.ascontiguousarray(unpermute(weight, rotary_heads) if rotary_heads else weight)
        )
    (out / PIECES_FILE).write_bytes(pieces_of(field, vocab))
    write_added_tokens(vocab, out)
    (out / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    with replacing(out / WEIGHTS_FILE) as partial:
        save_file(weights, partial, metadata={"format": "pt"})


def unpermute(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Invert `gguf.permute`: bring rows of q or k from pairs back to halves per head."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def pieces_of(field: Any, vocab: Vocab) -> bytes:
    """Return a SentencePiece model of the file's text pieces: BPE with byte fallback and without
    normalisation, like LLaMA's.
    """
    model = proto.ModelProto()
    tokens, scores, types = (field(f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type"))
    for number in range(vocab.first_code_id):
        piece = model.pieces.add()
        piece.piece, piece.score = tokens[number], float(scores[number])
        piece.type = PIECE_TYPES[gguf.TokenType(types[number])]
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = (
        proto.TrainerSpec.BPE,
        True,
        vocab.first_code_id,
    )
    trainer.unk_id = int(field("tokenizer.ggml.unknown_token_id"))
    trainer.bos_id, trainer.eos_id, trainer.pad_id = vocab.bos_id, vocab.eos_id, -1
    trainer.unk_piece, trainer.bos_piece, trainer.eos_piece = (
        tokens[n] for n in (trainer.unk_id, vocab.bos_id, vocab.eos_id)
    )
    normalizer.name, normalizer.add_dummy_prefix = "identity", True
    normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True
    return model.SerializeToString()
