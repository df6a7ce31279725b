"""Rewrites the weights of a graph as fp32, fp16 or int8, one tensor at a time.

Weights stored as fp16 are followed by a Cast, and arithmetic stays in fp32. Int8 weights of a matrix product
are multiplied by ONNX Runtime's MatMulNBits, which also quantizes each row of the other operand to int8,
block by block and independently of the rest of the batch. Int8 weights of a convolution are followed by a
DequantizeLinear with one scale per output channel. Four bits are not offered: they change at least a fifth of
the codes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from seed_edge.errors import CheckpointError
from seed_edge.onnx_header import MATMUL_NBITS, RUNTIME_DOMAIN

STORAGE = ("fp32", "fp16", "int8")
MIN_FP16_VALUES, MIN_INT8_VALUES = 256, 4096
"""Minimum number of values of a tensor that is stored as fp16 or int8; smaller ones stay fp32."""
MAX_INLINE_BYTES = 1 << 30
"""Maximum size of the weights within a graph file; larger ones are written to `NAME.onnx.data` beside it."""
MIN_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the graph: shapes are inferred from some of them."""
ALIGNMENT = 64
BLOCK_SIZES = (128, 64, 32, 16)
"""Numbers of values of a row that share a scale in MatMulNBits; the first that pads a row by at most
`MAX_PADDING` is used.
"""
MAX_PADDING = 0.1
INT8_ARITHMETIC = 4
"""`accuracy_level` of MatMulNBits at which both operands are int8."""


def rewrite(source: Path, out: Path, storage: str, exact: tuple[str, ...] = ()) -> None:
    """Copy the graph at `source`, an fp32 export, to `out` with its weights stored as `storage`.

    Memory holds one tensor at a time if the weights are stored outside the graph.

    Args:
        storage: `fp32`, `fp16` or `int8`.
        exact: initializers that are stored as fp32.

    Raises:
        CheckpointError: a weight is outside the range of fp16.
    """
    model = onnx.load(source, load_external_data=False)
    strip_source_locations(model)
    graph = model.graph
    axes = channel_axes(graph)
    products = matrix_products(graph, axes) if storage == "int8" else {}
    nodes, tensors = [], []
    with _data_file(out, graph, storage) as data:
        for tensor in graph.initializer:
            value = _value(tensor, source.parent)
            convertible = tensor.data_type == TensorProto.FLOAT and tensor.name not in exact
            if tensor.name in products and convertible and value.size >= MIN_INT8_VALUES:
                rows = value.T if axes[tensor.name] == 1 else value
                stored, scale = quantize_blocks(rows)
                names = [f"{tensor.name}.int8", f"{tensor.name}.scale"]
                for node in products[tensor.name]:
                    use_matmul_nbits(node, names, rows.shape, stored.shape[2])
                tensors += [_stored(stored, names[0], data), _stored(scale, names[1], data)]
            elif storage == "int8" and convertible and value.size >= MIN_INT8_VALUES and tensor.name in axes:
                int8, scale = quantize_channels(value, axes[tensor.name])
                names = [f"{tensor.name}.int8", f"{tensor.name}.scale"]
                nodes.append(
                    helper.make_node("DequantizeLinear", names, [tensor.name], axis=axes[tensor.name])
                )
                tensors += [_stored(int8, names[0], data), _stored(scale, names[1], data)]
            elif storage != "fp32" and convertible and value.size >= MIN_FP16_VALUES:
                if np.abs(value).max() > np.finfo(np.float16).max:
                    raise CheckpointError(
                        f"{source.name}: {tensor.name} does not fit half precision; use --image-weights fp32"
                    )
                nodes.append(
                    helper.make_node("Cast", [f"{tensor.name}.fp16"], [tensor.name], to=TensorProto.FLOAT)
                )
                tensors.append(_stored(value.astype(np.float16), f"{tensor.name}.fp16", data))
            else:
                tensors.append(_stored(value, tensor.name, data))
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    for node in reversed(nodes):
        graph.node.insert(0, node)
    if any(node.domain == RUNTIME_DOMAIN for node in graph.node):
        model.opset_import.append(helper.make_opsetid(RUNTIME_DOMAIN, 1))
    onnx.save(model, out)
    onnx.checker.check_model(str(out))


def channel_axes(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the output-channel axis of each weight that only matrix products or only convolutions use."""
    axes: dict[str, int] = {}
    other: set[str] = set()
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name not in ranks:
                continue
            axis = None
            if position == 1 and node.op_type == "MatMul":
                axis = ranks[name] - 1
            elif position == 1 and node.op_type == "Gemm":
                axis = 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
            elif position == 1 and node.op_type == "Conv":
                axis = 0
            if axis is None or axes.get(name, axis) != axis:
                other.add(name)
            else:
                axes[name] = axis
    return {name: axis for name, axis in axes.items() if name not in other}


def matrix_products(graph: onnx.GraphProto, axes: Mapping[str, int]) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that use each matrix of `channel_axes`, if MatMulNBits can replace all of them."""
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    products: dict[str, list[onnx.NodeProto]] = {name: [] for name in axes if ranks[name] == 2}
    for node in graph.node:
        if len(node.input) < 2 or node.input[1] not in products:
            continue
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        scaled = settings.get("transA", 0) or settings.get("alpha", 1) != 1 or settings.get("beta", 1) != 1
        if scaled or any(ranks.get(bias) != 1 for bias in node.input[2:]):
            del products[node.input[1]]
        else:
            products[node.input[1]].append(node)
    return products


def use_matmul_nbits(node: onnx.NodeProto, weights: list[str], shape: tuple[int, ...], block: int) -> None:
    """Replace a MatMul or Gemm with an int8 MatMulNBits, in place.

    Args:
        weights: names of the int8 weights and of their scales.
        shape: (outputs, inputs) of the matrix.
        block: values that share a scale.
    """
    operand, bias = node.input[0], list(node.input[2:])
    del node.input[:]
    node.input.extend([operand, *weights] + (["", "", *bias] if bias else []))
    node.op_type, node.domain = MATMUL_NBITS, RUNTIME_DOMAIN
    del node.attribute[:]
    settings = {
        "N": shape[0],
        "K": shape[1],
        "bits": 8,
        "block_size": block,
        "accuracy_level": INT8_ARITHMETIC,
    }
    node.attribute.extend(helper.make_attribute(name, value) for name, value in settings.items())


def quantize_blocks(rows: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize a matrix (outputs, inputs) for MatMulNBits: values (outputs, blocks, block) uint8 with zero
    point 128, and scales (outputs, blocks).
    """
    outputs, inputs = rows.shape
    block = next((n for n in BLOCK_SIZES if -inputs % n <= MAX_PADDING * inputs), BLOCK_SIZES[-1])
    padded = np.zeros((outputs, inputs + -inputs % block), np.float32)
    padded[:, :inputs] = rows
    blocks = padded.reshape(outputs, -1, block)
    scale = np.maximum(np.abs(blocks).max(2), np.float32(1e-12)) / np.float32(127)
    return (np.rint(blocks / scale[..., None]) + 128).astype(np.uint8), scale


def quantize_channels(value: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize symmetrically to int8, with one scale per channel of `axis`."""
    largest = np.abs(value).max(axis=tuple(i for i in range(value.ndim) if i != axis), keepdims=True)
    scale = np.maximum(largest, np.float32(1e-12)) / np.float32(127)
    return np.rint(value / scale).astype(np.int8), scale.reshape(-1).astype(np.float32)


def strip_source_locations(model: onnx.ModelProto) -> None:
    """Remove the tracer's notes about source files, which contain paths of this machine."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]


def _value(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    info = external_data_helper.ExternalDataInfo(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(folder / info.location, dtype, "r", offset=info.offset or 0, shape=tuple(tensor.dims))


@contextmanager
def _data_file(out: Path, graph: onnx.GraphProto, storage: str) -> Iterator[IO[bytes] | None]:
    """Yield the open file for weights beside `out`, or None if they fit into the graph."""
    factor = {"fp32": 4, "fp16": 2, "int8": 1}[storage]
    if sum(int(np.prod(tensor.dims)) for tensor in graph.initializer) * factor <= MAX_INLINE_BYTES:
        yield None
    else:
        with open(f"{out}.data", "wb") as file:
            yield file


def _stored(value: NDArray[np.generic], name: str, data: IO[bytes] | None) -> TensorProto:
    if data is None or value.nbytes < MIN_EXTERNAL_BYTES:
        return numpy_helper.from_array(np.ascontiguousarray(value), name)
    data.seek(-data.tell() % ALIGNMENT, os.SEEK_CUR)
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    offset = data.tell()
    np.ascontiguousarray(value).tofile(data)
    for key, item in (
        ("location", Path(data.name).name),
        ("offset", offset),
        ("length", data.tell() - offset),
    ):
        tensor.external_data.add(key=key, value=str(item))
    return tensor
