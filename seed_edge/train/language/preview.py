"""Images that a language model draws for fixed prompts during training, as a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from seed_edge.contact_sheet import contact_sheet, save_contact_sheet
from seed_edge.train.language.examples import ExampleBuilder

TEMPERATURE = 0.4
"""Sampling temperature of previews and of replay samples."""


@dataclass(frozen=True)
class Preview:
    """Prompts that are drawn at each checkpoint, and the decoder that draws them."""

    prompts: Sequence[str]
    decode: Callable[[NDArray[np.int64]], Image.Image]
    """Codes (codes_per_image,) -> image."""


def write_preview(
    model: PreTrainedModel | PeftModel, builder: ExampleBuilder, preview: Preview, path: Path
) -> None:
    """Draw each prompt of `preview` with the current model; write the images side by side as PNG to
    `path`.
    """
    images = [
        preview.decode(sample_codes(model, builder, text, seed)) for seed, text in enumerate(preview.prompts)
    ]
    save_contact_sheet(path, contact_sheet(images, columns=len(images)))


def sample_codes(
    model: PreTrainedModel | PeftModel, builder: ExampleBuilder, text: str, seed: int
) -> NDArray[np.int64]:
    """Sample the codes (codes_per_image,) of an image for a prompt; the model must be in eval mode.

    Args:
        seed: of PyTorch's global generator.
    """
    vocab = builder.vocab
    torch.manual_seed(seed)
    ids = torch.tensor([builder.prompts.for_drawing(vocab, builder.tokenize, text)], device=model.device)
    for _ in range(vocab.codes_per_image):
        logits = model(input_ids=ids).logits[0, -1, vocab.first_code_id :][: vocab.codebook_size].float()
        chosen = torch.multinomial((logits / TEMPERATURE).softmax(-1), 1) + vocab.first_code_id
        ids = torch.cat([ids, chosen[None]], 1)
    return vocab.ids_to_codes(ids[0, -vocab.codes_per_image :].tolist())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context the model is in eval mode and no gradients are computed."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
