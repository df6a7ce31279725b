"""Reads and writes checkpoints of the image tokenizer; every tensor must be there, with its exact shape."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from seed_edge.errors import CheckpointError
from seed_edge.models.config import Geometry
from seed_edge.models.image_tokenizer import ImageTokenizer

IMAGE_TOKENIZER_FILE = "image_tokenizer.safetensors"


def save_image_tokenizer(model: ImageTokenizer, folder: Path) -> None:
    """Write weights and `geometry.json` into `folder`; the weights appear only when complete."""
    folder.mkdir(parents=True, exist_ok=True)
    model.geometry.save(folder)
    partial = folder / (IMAGE_TOKENIZER_FILE + ".partial")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial)
    os.replace(partial, folder / IMAGE_TOKENIZER_FILE)


def load_image_tokenizer(folder: Path) -> ImageTokenizer:
    """Read what `save_image_tokenizer` wrote, in eval mode.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing, surplus or of another shape.
    """
    model = ImageTokenizer(Geometry.load(folder))
    path = folder / IMAGE_TOKENIZER_FILE
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; train it with `seed-edge train tokenizer`") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); copy or train it again") from error
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise CheckpointError(f"{path}: tensor {name} is missing")
        if state[name].shape != tensor.shape:
            found, wanted = tuple(state[name].shape), tuple(tensor.shape)
            raise CheckpointError(f"{path}: tensor {name} has shape {found}, geometry.json asks for {wanted}")
    surplus = sorted(set(state) - set(expected))
    if surplus:
        raise CheckpointError(f"{path}: {len(surplus)} tensors are not part of the model, first {surplus[0]}")
    model.load_state_dict(state)
    return model.eval()
