"""Compares exported files with the checkpoint they were made from; the figures are stored in the manifest.

The only part of export that uses the runtime, so that the comparison runs the files as users will.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seed_edge.bundle import Bundle
from seed_edge.errors import ParityError
from seed_edge.export.diffusion import UnclipFolder, UnetWithoutText, VaeDecoder
from seed_edge.export.gguf import LlamaFolder
from seed_edge.export.gguf_quantize import bits_of
from seed_edge.export.llama_reference import logits
from seed_edge.graphs import GraphSpec, unet_graph, vae_graph
from seed_edge.manifest import DECODER, ENCODER, MANIFEST, UNET, VAE, Manifest
from seed_edge.models.image_tokenizer import ImageTokenizer
from seed_edge.runtime.isolated_load import check_all_parts
from seed_edge.runtime.language_model import LlamaCpp
from seed_edge.runtime.memory_probe import measure_memory
from seed_edge.runtime.onnx_session import Session, choose_device
from seed_edge.runtime.selftest import measure
from seed_edge.vocab import Vocab

DECODER_ERROR = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.2}
"""Maximum difference of a decoded value, as a fraction of the largest value."""
DIFFUSION_ERROR = {"fp32": 1e-4, "fp16": 5e-3, "int8": 5e-2}
"""Maximum root mean square error: of v, relative to the root mean square of v; and of pixels in [0, 1]."""
CODE_AGREEMENT = {"fp32": 0.99, "fp16": 0.95, "int8": 0.9}
"""Minimum share of equal codes. In fp32 only near ties may differ."""
LOGITS_KL = {"F32": 1e-5, "F16": 1e-4, "BF16": 5e-3, "Q8_0": 5e-3}
"""Maximum mean KL divergence of next-id distributions, in nats."""
KL_BY_BITS = {6: 0.06, 5: 0.2, 4: 0.7}
DEFAULT_KL = 1.0
"""The same for weight types by their number of bits, and for all others."""


def image_parity(
    model: ImageTokenizer,
    specs: tuple[GraphSpec, GraphSpec],
    folder: Path,
    storages: tuple[str, str],
    pixel_values: NDArray[np.float32],
) -> dict[str, Any]:
    """Compare encoder and decoder of the bundle in `folder` with PyTorch.

    Args:
        specs: inputs and outputs of encoder and decoder.
        storages: storage types of the weights of encoder and decoder.
        pixel_values: normalised pixels (batch, 3, S, S) to encode.

    Raises:
        ParityError: a figure is outside its tolerance.
    """
    device = choose_device("cpu")
    with torch.inference_mode():
        codes = model.encode(torch.from_numpy(pixel_values)).numpy()
        decoded = model.decode(torch.from_numpy(codes)).numpy()
    exported_codes = Session(folder / ENCODER, specs[0], device)(pixel_values)[0]
    exported_decoded = Session(folder / DECODER, specs[1], device)(codes)[0]
    equal = float(np.mean(exported_codes == codes))
    error = float(np.abs(exported_decoded - decoded).max() / np.abs(decoded).max())
    needed, allowed = CODE_AGREEMENT[storages[0]], DECODER_ERROR[storages[1]]
    if equal < needed:
        raise ParityError(f"{ENCODER}: {equal:.1%} of codes equal PyTorch's, {needed:.0%} needed")
    if not error <= allowed:
        raise ParityError(f"{DECODER}: differs from PyTorch by {error:.2g} of the range, {allowed} allowed")
    return {
        "images": len(codes),
        "equal_codes": round(equal, 5),
        "equal_codes_needed": needed,
        "decoder_relative_error": float(f"{error:.3g}"),
        "decoder_relative_error_allowed": allowed,
        "decoder_cosine": round(cosine(exported_decoded, decoded), 6),
    }


def diffusion_parity(unclip: UnclipFolder, folder: Path, storage: str) -> dict[str, Any]:
    """Compare UNet and VAE of the bundle in `folder` with PyTorch, on random latents.

    Raises:
        ParityError: a figure is outside its tolerance.
    """
    settings, device, rng = unclip.settings(), choose_device("cpu"), np.random.default_rng(0)
    channels, size, dim = settings.latent_channels, settings.latent_size, unclip.image_embed_dim
    latents = rng.standard_normal((2, channels, size, size), dtype=np.float32)
    labels = rng.standard_normal((2, 2 * dim), dtype=np.float32)
    timestep = np.full(2, 500, np.int64)
    with torch.inference_mode():
        inputs = [torch.from_numpy(array) for array in (latents, timestep, labels)]
        v = UnetWithoutText(unclip.unet, unclip.empty_text)(*inputs).numpy()
        pixels = VaeDecoder(unclip.vae)(inputs[0][:1]).numpy()
    unet = Session(folder / UNET, unet_graph(channels, size, dim), device)
    exported_v = unet(latents, timestep, labels)[0]
    exported_pixels = Session(folder / VAE, vae_graph(channels), device)(latents[:1])[0]
    error = float(np.sqrt(np.mean((exported_v - v) ** 2) / np.mean(v**2)))
    pixel_error = float(np.sqrt(np.mean((exported_pixels - pixels) ** 2)))
    if not max(error, pixel_error) <= DIFFUSION_ERROR[storage]:
        raise ParityError(
            f"{UNET}, {VAE}: differ from PyTorch by {error:.2g}, {pixel_error:.2g}; "
            f"{DIFFUSION_ERROR[storage]} allowed"
        )
    return {
        "unet_relative_error": float(f"{error:.3g}"),
        "vae_pixel_error": float(f"{pixel_error:.3g}"),
        "allowed": DIFFUSION_ERROR[storage],
    }


def with_measurements(manifest: Manifest, folder: Path) -> Manifest:
    """Return the manifest with the results of the self-test and the memory of each graph.

    The manifest is written into `folder` first, since every part is checked against the rules of bundles and
    loaded in a child process.

    Raises:
        BundleError: an exported file breaks a rule of bundles.
    """
    (folder / MANIFEST).write_text(manifest.to_json(), "utf-8")
    check_all_parts(Bundle(folder, manifest))
    graphs = sorted(name for name in manifest.files if name.endswith(".onnx"))
    memory = {name: use for name in graphs if (use := measure_memory(folder / name)) is not None}
    return dataclasses.replace(
        manifest, memory=memory, self_test=measure(Bundle(folder, manifest), choose_device("cpu"))
    )


def cosine(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Return the mean cosine of the rows of two arrays."""
    x, y = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (a, b))
    return float(np.mean(np.sum(x * y, 1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)))


def language_parity(
    llama: LlamaFolder, path: Path, weight_type: str, vocab: Vocab, context_length: int
) -> dict[str, Any]:
    """Compare the GGUF file with transformers, by the mean KL divergence of the next id over a sequence of
    ids.

    Raises:
        ParityError: the divergence is outside the tolerance.
    """
    rng = np.random.default_rng(0)
    codes = rng.integers(vocab.codebook_size, size=vocab.codes_per_image)
    text = rng.integers(
        3, vocab.first_code_id, size=min(24, context_length - vocab.codes_per_image - 3)
    ).tolist()
    ids = [vocab.bos_id, *vocab.codes_to_ids(codes), *text]
    expected = torch.log_softmax(torch.from_numpy(logits(llama, ids)), -1).numpy()
    model = LlamaCpp(path, context_length, precise=True)
    try:
        rows = [model.prefill(ids[:1], room=0), *(model.step(i) for i in ids[1:])]
    finally:
        model.close()
    exported = torch.log_softmax(torch.from_numpy(np.stack(rows)), -1).numpy()
    divergence = float(np.mean(np.sum(np.exp(expected) * (expected - exported), -1)))
    allowed = (
        LOGITS_KL[weight_type]
        if weight_type in LOGITS_KL
        else KL_BY_BITS.get(bits_of(weight_type), DEFAULT_KL)
    )
    if not divergence <= allowed:
        raise ParityError(
            f"{path.name}: next-id distributions diverge by {divergence:.2g} nats, {allowed} allowed"
        )
    return {
        "positions": len(ids),
        "logits_kl": float(f"{divergence:.3g}"),
        "logits_kl_allowed": allowed,
        "same_argmax": round(float(np.mean(expected.argmax(-1) == exported.argmax(-1))), 4),
    }
