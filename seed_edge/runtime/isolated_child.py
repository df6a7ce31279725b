"""The child process of `isolated_load`: opens parts of a bundle and runs each once.

`python -m seed_edge.runtime.isolated_child MEMORY SECONDS FOLDER PART ...` prints a line of JSON for each
part: its error, or an empty string.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError, SeedEdgeError
from seed_edge.manifest import DECODER, ENCODER, UNET, VAE
from seed_edge.runtime.image_tokenizer import ImageTokenizer
from seed_edge.runtime.language_model import LlamaCpp
from seed_edge.runtime.onnx_session import Device, choose_device
from seed_edge.runtime.part_cache import PartCache
from seed_edge.runtime.selftest import pattern
from seed_edge.runtime.unclip import DiffusionOptions, Unclip

SAMPLE = "A red fox; 7 houses,\tβ 北 \N{FOX FACE}\x00\x1b</s><img_00001>\n\xff"
"""Input for the tokenizer: word pieces, bytes, control characters, names of control tokens."""


def limit_resources(memory: int, seconds: int) -> None:
    """Limit private memory and CPU time of this process, and disable core files, where the system supports
    it.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, limit in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, seconds * (os.cpu_count() or 1)),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def run_part(bundle: Bundle, name: str) -> None:
    """Open a part and run it once.

    Raises:
        SeedEdgeError: the part cannot be opened or run, or its outputs are not finite.
    """
    device, parts = choose_device("cpu"), PartCache(bundle, trusted=True)
    try:
        if name.endswith(".gguf"):
            _run_language_model(bundle)
        elif name in (ENCODER, DECODER):
            _run_image_tokenizer(bundle, name, device, parts)
        else:
            _run_diffusion(bundle, name, device, parts)
    finally:
        parts.close()


def _run_image_tokenizer(bundle: Bundle, name: str, device: Device, parts: PartCache) -> None:
    images, manifest = ImageTokenizer(bundle, device, parts), bundle.manifest
    if name == ENCODER:
        images.encode_values(
            manifest.preprocessing.normalise(pattern(manifest.preprocessing.image_size)[None])
        )
        return
    largest = manifest.codes.codebook_size - 1
    for code in (0, largest):
        decoded = images.run_decoder(np.full((1, manifest.codes.codes_per_image), code, np.int64))
        if not np.isfinite(decoded).all():
            raise BundleError(
                f"{bundle.decoder} gives values that are not finite for code {code}; export again"
            )


def _run_diffusion(bundle: Bundle, name: str, device: Device, parts: PartCache) -> None:
    unclip = Unclip(bundle, device, parts)
    latents, noise = unclip.noise(0, 1)
    if name == UNET:
        unclip.denoise(noise, latents, noise, DiffusionOptions(steps=2, guidance=1.0, scheduler="ddim"))
    elif name == VAE:
        unclip.decode_latents(latents, tiled=True)


def _run_language_model(bundle: Bundle) -> None:
    vocab, language = bundle.language.vocab, bundle.language
    model = LlamaCpp(bundle.language_model, language.context_length, repack=False, check_tensors=True)
    try:
        if model.vocab_size != vocab.size:
            raise BundleError(
                f"{bundle.language_model} has {model.vocab_size} ids, the manifest says {vocab.size}"
            )
        ids = [vocab.bos_id, *model.tokenize(SAMPLE)][: max(1, language.context_length // 2)]
        for token in range(vocab.size):
            model.detokenize([token])
        logits = [model.prefill(ids, room=1), model.step(vocab.first_code_id)]
        with model.new_context(2, 2) as other:
            other.prefill(ids[:1], room=2)
            logits.append(other.step_branches([vocab.boi_id, vocab.eos_id], [0, 0]))
        if not all(np.isfinite(array).all() for array in logits):
            raise BundleError(f"{bundle.language_model} gives values that are not finite; export again")
    finally:
        model.close()


def main(arguments: Sequence[str]) -> None:
    """Test parts, in order, and print a line of JSON for each."""
    memory, seconds, folder, *names = arguments
    limit_resources(int(memory), int(seconds))
    bundle = Bundle.read(Path(folder))
    for name in names:
        error = ""
        try:
            run_part(bundle, name)
        except SeedEdgeError as problem:
            error = str(problem)
        except MemoryError:
            error = (
                f"{bundle.path / name} needs more than {int(memory) / 1e9:.1f} GB of memory; do not use it"
            )
        print(json.dumps({"part": name, "error": error}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
