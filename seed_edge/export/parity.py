"""Exported files against the checkpoint they were made from, in numbers; the result goes into the manifest.

The only part of export that uses the runtime: what is compared is what users will run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from seed_edge.errors import ParityError
from seed_edge.graphs import decoder_graph, encoder_graph
from seed_edge.models.image_tokenizer import PixelTokenizer
from seed_edge.runtime.language_model import LlamaCpp
from seed_edge.runtime.sessions import Session, choose_device
from seed_edge.vocab import Vocab

PIXEL_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.2}
"""Largest difference of a drawn pixel in [0, 1]."""
CODE_AGREEMENT = {"fp32": 0.99, "fp16": 0.95, "int8": 0.7}
"""Smallest share of equal codes. In fp32 only near ties may differ."""
LOGITS_KL = {"F32": 1e-5, "F16": 1e-4, "Q8_0": 5e-3}
"""Largest mean divergence of next-id distributions, in nats."""


def image_parity(
    model: PixelTokenizer, encoder: Path, decoder: Path, storage: str, pixel_values: NDArray[np.float32]
) -> dict[str, Any]:
    """Compare both graphs with PyTorch.

    Args:
        pixel_values: normalised pixels (batch, 3, S, S) to encode.

    Raises:
        ParityError: a figure is outside its tolerance.
    """
    geometry, device = model.geometry, choose_device("cpu")
    with torch.inference_mode():
        codes = model.encode(torch.from_numpy(pixel_values)).numpy()
        pixels = model.decode(torch.from_numpy(codes)).numpy()
    exported = Session(encoder, encoder_graph(geometry.image_size, geometry.num_queries), device)(pixel_values)[0]
    drawn = Session(decoder, decoder_graph(geometry.num_queries, geometry.output_size), device)(codes)[0]
    equal = float(np.mean(exported == codes))
    error = float(np.abs(drawn - pixels).max())
    if equal < CODE_AGREEMENT[storage]:
        raise ParityError(f"{encoder.name}: {equal:.1%} of codes equal PyTorch's, {CODE_AGREEMENT[storage]:.0%} needed")
    if error > PIXEL_TOLERANCE[storage]:
        raise ParityError(f"{decoder.name}: pixels differ by {error:.2g}, at most {PIXEL_TOLERANCE[storage]} allowed")
    return {
        "images": len(codes),
        "equal_codes": round(equal, 5),
        "equal_codes_needed": CODE_AGREEMENT[storage],
        "largest_pixel_error": float(f"{error:.3g}"),
        "largest_pixel_error_allowed": PIXEL_TOLERANCE[storage],
    }


def language_parity(folder: Path, path: Path, weight_type: str, vocab: Vocab, context_length: int) -> dict[str, Any]:
    """Compare the GGUF file with transformers: mean KL divergence (nats) of the next id over a sequence of ids.

    Raises:
        ParityError: outside the tolerance, or argmax differs too often to be rounding.
    """
    reference = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    codes = rng.integers(vocab.codebook_size, size=vocab.codes_per_image)
    text = rng.integers(3, vocab.first_code_id, size=min(24, context_length - vocab.codes_per_image - 3)).tolist()
    ids = [vocab.bos_id, *vocab.codes_to_ids(codes), *text]
    with torch.inference_mode():
        wanted = torch.log_softmax(reference(torch.tensor([ids])).logits[0], -1).numpy()
    model = LlamaCpp(path, context_length, precise=True)
    try:
        rows = [model.start(ids[:1], room=0), *(model.step(i) for i in ids[1:])]
    finally:
        model.close()
    found = torch.log_softmax(torch.from_numpy(np.stack(rows)), -1).numpy()
    divergence = float(np.mean(np.sum(np.exp(wanted) * (wanted - found), -1)))
    if not divergence <= LOGITS_KL[weight_type]:
        raise ParityError(
            f"{path.name}: next-id distributions diverge by {divergence:.2g} nats, {LOGITS_KL[weight_type]} allowed"
        )
    return {
        "positions": len(ids),
        "logits_kl": float(f"{divergence:.3g}"),
        "logits_kl_allowed": LOGITS_KL[weight_type],
        "same_argmax": round(float(np.mean(wanted.argmax(-1) == found.argmax(-1))), 4),
    }
