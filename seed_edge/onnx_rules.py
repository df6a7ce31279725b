"""Rules for the graphs of a bundle: the operators that `export` writes, bounded attributes, shapes that can
be inferred, and memory in proportion to the weights and the image. Other graphs are refused before ONNX
Runtime reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seed_edge import onnx_shapes as shapes
from seed_edge.errors import BundleError
from seed_edge.graphs import GraphSpec
from seed_edge.onnx_header import MATMUL_NBITS, RUNTIME_DOMAIN, OnnxHeader, OnnxNode
from seed_edge.onnx_shapes import ShapeError, Tensor, attention_scores_bytes, from_weights

OPSETS = range(17, 24)
"""Opset versions of the standard domain."""
BASE_BYTES = 512 << 20
"""Memory in bytes that any graph may use."""
BYTES_PER_WEIGHT = 24
"""Bytes per weight: fp32, a copy in another layout, and the same amount for intermediate results."""
BYTES_PER_PIXEL = 16_000
"""Bytes per pixel of inputs and outputs; the official VAE needs 6,000 (`runtime.unclip.MEMORY_PER_PIXEL`)."""
Check = Callable[[Any], bool]


def _int_between(minimum: int, maximum: int) -> Check:
    return lambda value: type(value) is int and minimum <= value <= maximum


def _ints_between(max_count: int, minimum: int, maximum: int) -> Check:
    check = _int_between(minimum, maximum)
    return lambda value: isinstance(value, list) and len(value) <= max_count and all(map(check, value))


def _float_between(minimum: float, maximum: float) -> Check:
    return lambda value: type(value) is float and minimum <= value <= maximum  # False for NaN


def _one_of(*values: bytes) -> Check:
    return lambda value: value in values


def _is_einsum_equation(value: Any) -> bool:
    text = bytes(value) if isinstance(value, bytes) else b""
    letters = text.replace(b"->", b"").replace(b",", b"")
    return len(text) <= 32 and text.count(b"->") == 1 and letters.isalpha()


FLAG = _int_between(0, 1)
AXIS = _int_between(-8, 7)
EPSILON = _float_between(0.0, 0.1)
WINDOW = {
    "kernel_shape": _ints_between(2, 1, 256),
    "strides": _ints_between(2, 1, 256),
    "pads": _ints_between(4, 0, 256),
    "auto_pad": _one_of(b"NOTSET"),
}
REDUCTION = {"keepdims": FLAG, "noop_with_empty_axes": _int_between(0, 0)}


@dataclass(frozen=True)
class Operator:
    """Rule of one operator: allowed inputs, outputs and attributes."""

    rule: shapes.Rule
    """Infers the shapes of the outputs."""
    inputs: tuple[int, int] = (1, 1)
    """Minimum and maximum number of inputs."""
    attributes: Mapping[str, Check] | None = None
    required: tuple[str, ...] = ()
    """Names of required attributes."""


OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(
        ("Cos", "Sin", "Relu", "Sigmoid", "Tanh", "Identity", "Neg", "Sqrt", "Erf", "Exp"),
        Operator(shapes.unary),
    ),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow"), Operator(shapes.binary, (2, 2))),
    "Greater": Operator(shapes.comparison, (2, 2)),
    "Gelu": Operator(shapes.unary, (1, 1), {"approximate": _one_of(b"none", b"tanh")}),
    "Softmax": Operator(shapes.unary, (1, 1), {"axis": AXIS}),
    "Clip": Operator(shapes.clip, (1, 3)),
    "Cast": Operator(
        shapes.cast, (1, 1), {"to": lambda value: value in (1, 7, 10), "saturate": FLAG}, ("to",)
    ),
    "DequantizeLinear": Operator(
        shapes.dequantize_linear, (2, 2), {"axis": AXIS, "block_size": _int_between(0, 0)}
    ),
    "BatchNormalization": Operator(
        shapes.channel_norm,
        (5, 5),
        {"epsilon": EPSILON, "momentum": _float_between(0, 1), "training_mode": _int_between(0, 0)},
    ),
    "GroupNormalization": Operator(
        shapes.channel_norm,
        (3, 3),
        {"epsilon": EPSILON, "num_groups": _int_between(1, 1024), "stash_type": FLAG},
        ("num_groups",),
    ),
    "LayerNormalization": Operator(
        shapes.layer_norm, (2, 3), {"epsilon": EPSILON, "axis": AXIS, "stash_type": FLAG}
    ),
    "Reshape": Operator(shapes.reshape, (2, 2), {"allowzero": FLAG}),
    "Transpose": Operator(shapes.transpose, (1, 1), {"perm": _ints_between(8, 0, 7)}),
    "Concat": Operator(shapes.concat, (1, 64), {"axis": AXIS}, ("axis",)),
    "Slice": Operator(shapes.slice_axes, (3, 5)),
    "Split": Operator(
        shapes.split, (1, 1), {"axis": AXIS, "num_outputs": _int_between(1, 64)}, ("num_outputs",)
    ),
    "Squeeze": Operator(shapes.squeeze, (1, 2)),
    "Unsqueeze": Operator(shapes.unsqueeze, (2, 2)),
    "Expand": Operator(shapes.expand, (2, 2)),
    "Gather": Operator(shapes.gather, (2, 2), {"axis": AXIS}),
    "Shape": Operator(shapes.shape_op, (1, 1), {"start": AXIS, "end": _int_between(-8, 8)}),
    "Resize": Operator(
        shapes.resize,
        (3, 4),
        {
            "mode": _one_of(b"nearest"),
            "nearest_mode": _one_of(b"floor", b"round_prefer_floor"),
            "coordinate_transformation_mode": _one_of(b"asymmetric", b"half_pixel"),
            "keep_aspect_ratio_policy": _one_of(b"stretch"),
            "antialias": _int_between(0, 0),
            "exclude_outside": _int_between(0, 0),
            "extrapolation_value": _float_between(0, 0),
            "cubic_coeff_a": _float_between(-0.75, -0.75),
        },
    ),
    "DepthToSpace": Operator(
        shapes.depth_to_space,
        (1, 1),
        {"blocksize": _int_between(1, 64), "mode": _one_of(b"CRD", b"DCR")},
        ("blocksize",),
    ),
    "Einsum": Operator(shapes.einsum, (1, 4), {"equation": _is_einsum_equation}, ("equation",)),
    "MatMul": Operator(shapes.matmul, (2, 2)),
    "Gemm": Operator(
        shapes.gemm,
        (2, 3),
        {
            "alpha": _float_between(-1e4, 1e4),
            "beta": _float_between(-1e4, 1e4),
            "transA": FLAG,
            "transB": FLAG,
        },
    ),
    f"{RUNTIME_DOMAIN}::{MATMUL_NBITS}": Operator(
        shapes.matmul_nbits,
        (3, 6),
        {
            "N": _int_between(1, 1 << 20),
            "K": _int_between(1, 1 << 20),
            "bits": _int_between(8, 8),
            "block_size": lambda value: value in (16, 32, 64, 128),
            "accuracy_level": _int_between(4, 4),
        },
        ("N", "K", "bits", "block_size"),
    ),
    "Conv": Operator(
        shapes.conv,
        (2, 3),
        WINDOW | {"group": _int_between(1, 1 << 16), "dilations": _ints_between(2, 1, 64)},
    ),
    "AveragePool": Operator(
        shapes.average_pool,
        (1, 1),
        WINDOW
        | {"ceil_mode": _int_between(0, 0), "count_include_pad": FLAG, "dilations": _ints_between(2, 1, 64)},
        ("kernel_shape",),
    ),
    "ReduceMean": Operator(shapes.reduce, (1, 2), REDUCTION),
    "ReduceSum": Operator(shapes.reduce, (1, 2), REDUCTION),
    "ArgMin": Operator(shapes.arg_min, (1, 1), {"axis": AXIS, "keepdims": FLAG, "select_last_index": FLAG}),
    "Attention": Operator(
        shapes.attention,
        (3, 4),
        {
            "is_causal": FLAG,
            "qk_matmul_output_mode": _int_between(0, 0),
            "softcap": _float_between(0, 0),
            "scale": _float_between(0, 1e4),
        },
    ),
}
"""Operators that `export` writes; `tests/export/test_onnx_rules.py` compares them with the exporter's."""


def check_graph(path: Path, spec: GraphSpec, axes: Mapping[str, int] | None = None) -> None:
    """Check that a graph has the declared inputs and outputs, and nothing outside the allow-list.

    Args:
        spec: declared inputs and outputs.
        axes: lengths of dynamic axes, for the memory estimate; 1 by default.

    Raises:
        BundleError: it breaks a rule; the message names the first problem.
    """
    header = OnnxHeader.read(path)
    header.check_bundle_rules(path)
    problem = next(_problems(header, spec, axes or {}), None)
    if problem is not None:
        raise BundleError(f"{path} is not a valid graph of a bundle: {problem}; export it again")


def _problems(header: OnnxHeader, spec: GraphSpec, axes: Mapping[str, int]) -> Iterator[str]:
    standard = header.opsets.get("", header.opsets.get("ai.onnx", 0))
    if standard not in OPSETS or header.opsets.get(RUNTIME_DOMAIN, 1) != 1:
        yield (f"it uses opset versions {header.opsets}; supported are {OPSETS.start} to {OPSETS.stop - 1}")
    yield from _signature_problems(header, spec)
    for tensor in header.tensors.values():
        if tensor.kind not in shapes.SIZES:
            yield f"the weights {tensor.name[:80]!r} have type {tensor.kind}"
        if tensor.location is None and not tensor.stored:
            yield f"the weights {tensor.name[:80]!r} are not stored as bytes"
    for node in header.nodes:
        yield from _node_problems(node)
    try:
        estimated = estimate_memory(header, spec, axes)
    except ShapeError as error:
        yield str(error)
        return
    allowed = memory_budget(header, spec, axes)
    if estimated > allowed:
        yield (
            f"it would use {estimated / 1e9:.1f} GB of memory; {allowed / 1e9:.1f} GB are allowed for its "
            "weights and pixels"
        )


def _signature_problems(header: OnnxHeader, spec: GraphSpec) -> Iterator[str]:
    for shapes_by_name, declared, direction in (
        (header.inputs, spec.inputs, "inputs"),
        (header.outputs, spec.outputs, "outputs"),
    ):
        expected = {tensor.name: (tensor.dtype, _fixed(tensor.shape)) for tensor in declared}
        actual = {name: (header.types[name], _fixed(shape)) for name, shape in shapes_by_name.items()}
        if list(actual.items()) != list(expected.items()):
            yield f"its {direction} are {str(actual)[:200]}; the manifest declares {expected}"


def _fixed(shape: tuple[int | str, ...]) -> tuple[int | None, ...]:
    """The shape with None for dynamic axes."""
    return tuple(n if isinstance(n, int) else None for n in shape)


def _node_problems(node: OnnxNode) -> Iterator[str]:
    operator = OPERATORS.get(node.operator)
    if operator is None:
        yield f"it uses the operator {node.operator[:80]!r}"
        return
    minimum, maximum = operator.inputs
    if not minimum <= len(node.inputs) <= maximum:
        yield f"{node.operator} has {len(node.inputs)} inputs"
    allowed = operator.attributes or {}
    for name, value in node.attributes.items():
        if name not in allowed:
            yield f"{node.operator} has the attribute {name[:80]!r}"
        elif not allowed[name](value):
            yield f"{node.operator} has {name} {str(value)[:80]}"
    for name in operator.required:
        if name not in node.attributes:
            yield f"{node.operator} lacks {name}"


def estimate_memory(header: OnnxHeader, spec: GraphSpec, axes: Mapping[str, int]) -> int:
    """Upper bound of the memory of one run in bytes, from shapes: weights, constants derived from them, and
    live tensors.

    Raises:
        ShapeError: shapes are inconsistent with each other or the declared outputs, or a tensor is used
            before
            it is computed.
    """
    known: dict[str, Tensor] = {name: from_weights(tensor) for name, tensor in header.tensors.items()}
    constant = set(known)
    for tensor in spec.inputs:
        known[tensor.name] = Tensor(_sized(tensor.shape, axes), tensor.dtype)
    last_use = {name: position for position, node in enumerate(header.nodes) for name in node.inputs}
    last_use |= {tensor.name: len(header.nodes) for tensor in spec.outputs}
    permanent = sum(tensor.size for tensor in known.values())
    live, peak = 0, 0
    for position, node in enumerate(header.nodes):
        inputs = [known.get(name) if name else None for name in node.inputs]
        missing = [name for name, value in zip(node.inputs, inputs, strict=True) if name and value is None]
        if missing:
            raise ShapeError(f"{node.operator} uses {missing[0][:80]!r} before it is computed")
        try:
            outputs = OPERATORS[node.operator].rule(node, inputs)
        except ShapeError as error:
            raise ShapeError(f"{node.operator} with output {node.outputs[:1]!r}: {error}") from None
        if len(outputs) != len(node.outputs) or any(name in known for name in node.outputs):
            raise ShapeError(f"{node.operator} has the outputs {node.outputs[:4]!r}")
        known |= zip(node.outputs, outputs, strict=True)
        size = sum(tensor.size for tensor in outputs)
        if all(not name or name in constant for name in node.inputs):
            constant |= set(node.outputs)
            permanent += size
            continue
        live += size
        peak = max(peak, live + attention_scores_bytes(node, inputs))
        live -= sum(
            known[name].size
            for name in {*node.inputs, *node.outputs}
            if _is_last_use(name, position, last_use, constant, spec)
        )
    for tensor in spec.outputs:
        if tensor.name not in known or known[tensor.name].kind != tensor.dtype:
            raise ShapeError(f"{tensor.name} is not computed, or has another type")
        expected = _sized(tensor.shape, axes)
        actual = known[tensor.name].shape
        if len(actual) != len(expected) or any(
            isinstance(n, int) and n != m for n, m in zip(tensor.shape, actual, strict=True)
        ):
            raise ShapeError(f"{tensor.name} has shape {actual}; {tensor.shape} is declared")
    return permanent + peak


def _is_last_use(
    name: str, position: int, last_use: Mapping[str, int], constant: set[str], spec: GraphSpec
) -> bool:
    """Whether a live tensor is used for the last time by the node at `position`."""
    if not name or name in constant or name in {tensor.name for tensor in spec.inputs}:
        return False
    return last_use.get(name, position) <= position


def _sized(shape: tuple[int | str, ...], axes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(n if isinstance(n, int) else axes.get(n, 1) for n in shape)


def memory_budget(header: OnnxHeader, spec: GraphSpec, axes: Mapping[str, int]) -> int:
    """Memory in bytes that a graph with these weights, inputs and outputs may use."""
    weights = sum(math.prod(tensor.shape) for tensor in header.tensors.values())
    signature = [_sized(tensor.shape, axes) for tensor in (*spec.inputs, *spec.outputs)]
    pixels = max(math.prod((shape[0], *shape[2:])) for shape in signature)
    return BASE_BYTES + BYTES_PER_WEIGHT * weights + BYTES_PER_PIXEL * pixels
