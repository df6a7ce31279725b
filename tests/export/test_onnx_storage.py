"""Graphs of SEED-2 on reproducible random weights, stored in every way, against the original code's
codes.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from seed_edge.commands.common import STORAGE_TYPES
from seed_edge.errors import CheckpointError
from seed_edge.export import onnx_storage
from seed_edge.export.onnx import Encoder, export_graph
from seed_edge.export.onnx_storage import (
    channel_axes,
    matrix_products,
    quantize_blocks,
    quantize_channels,
    rewrite,
)
from seed_edge.graphs import encoder_graph
from seed_edge.models.checkpoints import load_seed_tokenizer

REFERENCE = Path(__file__).parent.parent / "fixtures" / "seed2"
CODEBOOK = "model.quantize.embedding.weight"


@pytest.fixture(scope="module")
def exported(seed2, tmp_path_factory):
    """The fp32 encoder graph of the tiny geometry, seed 7."""
    path = tmp_path_factory.mktemp("graph") / "encoder.onnx"
    export_graph(
        Encoder(load_seed_tokenizer(seed2, None, lambda text: None)), encoder_graph(56, 32), path, "fp32"
    )
    return path


@pytest.fixture(scope="module")
def stored():
    return np.load(REFERENCE / "tiny-7.npz")


def codes_of(path, maker, stored, batch=3):
    values = maker["pixel_values"](maker["GEOMETRIES"]["tiny"], 3, int(stored["pixel_values_seed"]))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": values[:batch]})[0]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_fp32_graph_gives_the_codes_of_the_original_code_for_any_batch(exported, maker, stored, batch):
    assert np.array_equal(codes_of(exported, maker, stored, batch), stored["codes"][:batch])


@pytest.mark.parametrize(("storage", "least", "share"), [("fp16", 0.99, 0.68), ("int8", 0.9, 0.55)])
@pytest.mark.parametrize("inline", [onnx_storage.MAX_INLINE_BYTES, 0], ids=["one file", "data beside"])
def test_smaller_storage_keeps_the_codes(
    exported, maker, stored, tmp_path, monkeypatch, storage, least, share, inline
):
    monkeypatch.setattr(onnx_storage, "MAX_INLINE_BYTES", inline)
    out = tmp_path / "encoder.onnx"
    rewrite(exported, out, storage, exact=(CODEBOOK,))
    assert np.mean(codes_of(out, maker, stored) == stored["codes"]) >= least
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < share * exported.stat().st_size
    assert {file.name for file in tmp_path.iterdir()} == {"encoder.onnx"} | (
        set() if inline else {"encoder.onnx.data"}
    )


def test_the_codebook_keeps_every_bit(exported, tmp_path):
    rewrite(exported, tmp_path / "e.onnx", "int8", exact=(CODEBOOK,))
    before, after = (
        next(numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name == CODEBOOK)
        for path in (exported, tmp_path / "e.onnx")
    )
    assert before.shape == (8192, 32) and np.array_equal(before, after)


def test_data_beside_the_graph_is_found_again_and_aligned(exported, maker, stored, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_storage, "MAX_INLINE_BYTES", 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rewrite(exported, tmp_path / "a" / "e.onnx", "fp32")
    rewrite(
        tmp_path / "a" / "e.onnx", tmp_path / "b" / "e.onnx", "fp16", exact=(CODEBOOK,)
    )  # reads external data too
    assert np.mean(codes_of(tmp_path / "b" / "e.onnx", maker, stored) == stored["codes"]) >= 0.99
    graph = onnx.load(tmp_path / "b" / "e.onnx", load_external_data=False).graph
    offsets = [int(e.value) for t in graph.initializer for e in t.external_data if e.key == "offset"]
    assert offsets and not any(offset % 64 for offset in offsets)


def test_each_channel_has_its_own_scale_and_half_a_step_is_the_largest_error():
    rng = np.random.default_rng(0)
    value = (rng.standard_normal((8, 5)) * np.array([1e-3, 1, 10, 0, 5])).astype(np.float32)
    stored, scale = quantize_channels(value, axis=1)
    assert stored.dtype == np.int8 and scale.shape == (5,)
    assert np.all(np.abs(stored * scale - value) <= scale / 2 + 1e-9)
    assert np.abs(stored[:, :3]).max(0).tolist() == [127, 127, 127]


def test_axes_are_those_of_output_channels_and_shared_weights_are_left_alone():
    nodes = [
        helper.make_node("MatMul", ["x", "m"], ["a"]),
        helper.make_node("Gemm", ["a", "g"], ["b"], transB=1),
        helper.make_node("Gemm", ["b", "h"], ["c"]),
        helper.make_node("Conv", ["i", "k"], ["d"]),
        helper.make_node("MatMul", ["c", "shared"], ["e"]),
        helper.make_node("Gather", ["shared", "n"], ["f"]),
    ]
    tensors = [
        numpy_helper.from_array(np.zeros((2, 2), np.float32), name) for name in ("m", "g", "h", "shared")
    ]
    tensors.append(numpy_helper.from_array(np.zeros((2, 2, 1, 1), np.float32), "k"))
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    assert channel_axes(graph) == {"m": 1, "g": 0, "h": 1, "k": 0}


@pytest.mark.parametrize(
    ("inputs", "block", "padded"), [(1408, 128, 1408), (96, 32, 96), (93, 32, 96), (20, 16, 32)]
)
def test_blocks_hold_what_was_there_within_half_a_step_and_pad_little(inputs, block, padded):
    rows = np.random.default_rng(0).standard_normal((3, inputs)).astype(np.float32)
    stored, scale = quantize_blocks(rows)
    assert (
        stored.dtype == np.uint8
        and stored.shape == (3, padded // block, block)
        and scale.shape == stored.shape[:2]
    )
    given = ((stored.astype(np.float32) - 128) * scale[..., None]).reshape(3, padded)
    assert np.all(np.abs(given[:, :inputs] - rows) <= scale.max() / 2 + 1e-7) and not given[:, inputs:].any()


def test_products_of_bytes_give_what_the_products_gave_and_others_are_left_alone(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"m": (128, 96), "g": (80, 96), "bias": (80,), "h": (80, 128), "odd": (128, 128)}
    tensors = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) / 9, n) for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "m"], ["a"]),
        helper.make_node("Gemm", ["a", "g", "bias"], ["b"], transB=1),
        helper.make_node("Gemm", ["b", "h"], ["c"]),
        helper.make_node("Gemm", ["c", "odd"], ["y"], alpha=0.5),
    ]
    given, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [5, 128]) for n in ("x", "y"))
    graph = helper.make_graph(nodes, "g", [given], [made], tensors)
    assert set(matrix_products(graph, channel_axes(graph))) == {"m", "g", "h"}
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10),
        tmp_path / "a.onnx",
    )
    rewrite(tmp_path / "a.onnx", tmp_path / "b.onnx", "int8")
    kinds = [node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node]
    assert kinds == ["DequantizeLinear", "MatMulNBits", "MatMulNBits", "MatMulNBits", "Gemm"]
    x = {"x": rng.standard_normal((5, 128)).astype(np.float32)}
    before, after = (ort.InferenceSession(tmp_path / n).run(None, x)[0] for n in ("a.onnx", "b.onnx"))
    assert 0 < np.abs(before - after).max() < 0.03 * np.abs(before).max()


def test_codes_of_bytes_do_not_depend_on_what_else_is_in_the_batch(exported, maker, stored, tmp_path):
    rewrite(exported, tmp_path / "e.onnx", "int8", exact=(CODEBOOK,))
    assert np.array_equal(
        codes_of(tmp_path / "e.onnx", maker, stored, 3)[:1], codes_of(tmp_path / "e.onnx", maker, stored, 1)
    )


def test_weights_that_overflow_half_precision_are_refused(tmp_path):
    tensor = numpy_helper.from_array(np.full((300, 300), 1e6, np.float32), "w")
    given, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 300]) for n in ("x", "y"))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [given], [made], [tensor])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10),
        tmp_path / "a.onnx",
    )
    with pytest.raises(CheckpointError, match="w does not fit half precision"):
        rewrite(tmp_path / "a.onnx", tmp_path / "b.onnx", "fp16")


def test_the_command_offers_every_storage_type():
    assert STORAGE_TYPES == onnx_storage.STORAGE
