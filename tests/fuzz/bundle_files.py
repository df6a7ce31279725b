"""Bundles for fuzzing: the tiny one, and a diffusion of some kilobytes, with one file changed and the manifest made to fit."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import seed_edge
from seed_edge.errors import SeedEdgeError

FIXTURES = Path(__file__).parent.parent / "fixtures"
TINY = FIXTURES / "tiny"
SIDE, COUNT, DIM, LATENT = 16, 4, 4, 8
"""Pixels, codes of an image, width of an embedding, latents a side."""


@functools.cache
def make_tiny() -> dict[str, Any]:
    """What the script that makes the tiny bundle defines."""
    return runpy.run_path(str(FIXTURES / "make_tiny_bundle.py"))


def place(
    folder: Path, files: Mapping[str, bytes], manifest: bytes | None = None, base: str = "tiny"
) -> Path:
    """A bundle in `folder` with some files in place of its own; only what differs is written.

    Args:
        manifest: takes the place of the manifest, as it is; else that of the base with sizes and hashes of
            the files.
        base: `tiny`, or `unclip`.
    """
    bundle = folder / base
    bundle.mkdir(exist_ok=True)
    contents = dict(originals(base)) | dict(files)
    told = json.loads(contents.pop("manifest.json"))
    told["files"] = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in contents.items()
    }
    contents["manifest.json"] = json.dumps(told).encode() if manifest is None else manifest
    for name, data in contents.items():
        path = bundle / name
        if not path.is_file() or path.read_bytes() != data:
            path.write_bytes(data)
    return bundle


@functools.cache
def originals(base: str) -> dict[str, bytes]:
    """Files of a bundle as it should be."""
    if base == "tiny":
        return {path.name: path.read_bytes() for path in TINY.iterdir()}
    tiny = originals("tiny")
    files = {"encoder.onnx": tiny["encoder.onnx"]} | {f"{name}.onnx": made() for name, made in UNCLIP.items()}
    noise = io.BytesIO()
    steps = np.linspace(0.999, 0.01, 1000)
    np.savez(
        noise,
        alphas_cumprod=steps,
        mean=np.zeros(DIM, "f4"),
        std=np.ones(DIM, "f4"),
        noise_alpha=np.float64(0.99),
    )
    files["image_noise.npz"] = noise.getvalue()
    told = json.loads(tiny["manifest.json"])
    told |= {
        "name": "unclip",
        "kind": "unclip",
        "image_embed_dim": DIM,
        "language": None,
        "self_test": None,
        "memory": {},
    }
    told["diffusion"] = {
        "scheduler": "pndm", "steps": 4, "guidance": 2.0, "latent_channels": 4, "latent_size": LATENT, "steps_offset": 1,
        "final_alpha_one": False,
    }  # fmt: skip
    return files | {"manifest.json": json.dumps(told).encode()}


def model(nodes: list[Any], weights: Mapping[str, Any], given: list[Any], made: list[Any]) -> bytes:
    """A graph of opset 23; `given` and `made` are name, type and shape."""
    ends = [[helper.make_tensor_value_info(*each) for each in side] for side in (given, made)]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "fuzz", *ends, tensors)
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def rich_encoder() -> bytes:
    """An encoder with many kinds of operators: convolution, attention, products of bytes, the nearest of 8 vectors."""
    rng, n = np.random.default_rng(0), helper.make_node
    width = 16
    weights = {
        "kernel": rng.normal(0, 0.2, (width, 3, 8, 8)).astype("f4"), "bias": np.zeros(width, "f4"), "flat": np.array([0, width, COUNT]),
        "heads": np.array([0, COUNT, 2, 8]), "back": np.array([0, COUNT, width]), "scale": np.ones(width, "f4"),
        "bytes": rng.integers(0, 256, (width, 1, width)).astype("u1"), "scales": np.full((width, 1), 0.01, "f4"),
        "half": rng.normal(0, 1, (width, 8)).astype("f2"), "two": np.array(2, "f4"), "low": np.array(-5, "f4"),
        "high": np.array(5, "f4"), "axes": np.array([2]), "starts": np.array([0]), "ends": np.array([8]),
        "last": np.array([1]),
    }  # fmt: skip
    nodes = [
        n("Conv", ["pixel_values", "kernel", "bias"], ["c"], kernel_shape=[8, 8], strides=[8, 8], pads=[0, 0, 0, 0]),
        n("Reshape", ["c", "flat"], ["r"]),
        n("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        n("LayerNormalization", ["t", "scale", "bias"], ["l"], axis=-1, epsilon=1e-5),
        n("Reshape", ["l", "heads"], ["h"]),
        n("Transpose", ["h"], ["q"], perm=[0, 2, 1, 3]),
        n("Attention", ["q", "q", "q"], ["a"], is_causal=1),
        n("Transpose", ["a"], ["s"], perm=[0, 2, 1, 3]),
        n("Reshape", ["s", "back"], ["b"]),
        n("MatMulNBits", ["b", "bytes", "scales"], ["m"], domain="com.microsoft", N=16, K=16, bits=8, block_size=16, accuracy_level=4),
        n("Gelu", ["m"], ["g"]),
        n("Clip", ["g", "low", "high"], ["k"]),
        n("Concat", ["k", "l"], ["cat"], axis=1),
        n("Slice", ["cat", "starts", "ends", "axes"], ["front"]),
        n("Split", ["cat"], ["p1", "p2"], axis=1, num_outputs=2),
        n("Add", ["p1", "p2"], ["sum"]),
        n("Cast", ["half"], ["book"], to=TensorProto.FLOAT),
        n("MatMul", ["sum", "book"], ["near"]),
        n("Pow", ["near", "two"], ["far"]),
        n("ReduceSum", ["front", "axes"], ["total"], keepdims=1),
        n("ReduceMean", ["total", "last"], ["mean"], keepdims=1),
        n("Sub", ["far", "mean"], ["distance"]),
        n("ArgMin", ["distance"], ["codes"], axis=-1, keepdims=0),
    ]  # fmt: skip
    return model(
        nodes,
        weights,
        [["pixel_values", 1, ["batch", 3, SIDE, SIDE]]],
        [["codes", TensorProto.INT64, ["batch", COUNT]]],
    )


def _embedder() -> bytes:
    nodes = [
        helper.make_node("Gather", ["table", "codes"], ["rows"], axis=0),
        helper.make_node("ReduceMean", ["rows", "axis"], ["image_embeds"], keepdims=0),
    ]
    weights = {"table": np.random.default_rng(0).normal(0, 1, (8, DIM)).astype("f4"), "axis": np.array([1])}
    return model(nodes, weights, [["codes", 7, ["batch", COUNT]]], [["image_embeds", 1, ["batch", DIM]]])


def _unet() -> bytes:
    n = helper.make_node
    nodes = [
        n("Conv", ["latents", "kernel"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        n("GroupNormalization", ["c", "one", "none"], ["g"], num_groups=2, epsilon=1e-5),
        n("Unsqueeze", ["timestep", "axes"], ["t"]),
        n("Cast", ["t"], ["f"], to=1),
        n("Sigmoid", ["f"], ["s"]),
        n("Gemm", ["class_labels", "labels"], ["e"], transB=1),
        n("Unsqueeze", ["e", "last"], ["w"]),
        n("Add", ["g", "w"], ["x"]),
        n("Mul", ["x", "s"], ["v"]),
    ]
    rng = np.random.default_rng(1)
    weights = {
        "kernel": rng.normal(0, 0.1, (4, 4, 3, 3)).astype("f4"), "one": np.ones(4, "f4"), "none": np.zeros(4, "f4"),
        "axes": np.array([1, 2, 3]), "last": np.array([2, 3]), "labels": rng.normal(0, 0.1, (4, 2 * DIM)).astype("f4"),
    }  # fmt: skip
    given = [
        ["latents", 1, ["batch", 4, LATENT, LATENT]],
        ["timestep", 7, ["batch"]],
        ["class_labels", 1, ["batch", 2 * DIM]],
    ]
    return model(nodes, weights, given, [["v", 1, ["batch", 4, LATENT, LATENT]]])


def _vae() -> bytes:
    n = helper.make_node
    nodes = [
        n("Resize", ["latents", "", "scales"], ["r"], mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
        n("Conv", ["r", "kernel"], ["c"], kernel_shape=[1, 1]),
        n("Sigmoid", ["c"], ["pixels"]),
    ]  # fmt: skip
    weights = {
        "scales": np.array([1, 1, 2, 2], "f4"),
        "kernel": np.random.default_rng(2).normal(0, 1, (3, 4, 1, 1)).astype("f4"),
    }
    given = [["latents", 1, ["batch", 4, "rows", "columns"]]]
    return model(nodes, weights, given, [["pixels", 1, ["batch", 3, "pixel rows", "pixel columns"]]])


UNCLIP = {"decoder": _embedder, "unet": _unet, "vae_decoder": _vae}


def loaded(bundle: Path, use: Callable[[seed_edge.SeedEdge], None]) -> bool:
    """Open a bundle and use it; False where it is refused in one line. Anything else that is raised is a fault."""
    try:
        with seed_edge.load(bundle, device="cpu") as edge:
            use(edge)
    except SeedEdgeError as error:
        assert str(error) and "\n" not in str(error), error
        return False
    return True
