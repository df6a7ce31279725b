"""Rules for the graphs of a bundle: the operators that `export` writes, with bounded attributes, shapes that
follow from the header, and memory in proportion to the weights and the picture. Anything else is refused
before ONNX Runtime reads it.
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
from seed_edge.onnx_header import PRODUCT_OF_BYTES, RUNTIME_DOMAIN, OnnxHeader, OnnxNode
from seed_edge.onnx_shapes import ShapeProblem, Tensor, of_weights, scores_size

OPSETS = range(17, 24)
"""Versions of the standard operators that bundles use."""
BASE = 512 << 20
"""Bytes that any graph may take."""
PER_WEIGHT = 24
"""Bytes per weight: fp32, a copy in another layout, and the same amount for intermediate results."""
PER_PIXEL = 16_000
"""Bytes per pixel of inputs and outputs; the official VAE needs 6,000 (`runtime.unclip.MEMORY_PER_PIXEL`)."""
Check = Callable[[Any], bool]


def _whole(least: int, most: int) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _wholes(count: int, least: int, most: int) -> Check:
    return lambda value: (
        isinstance(value, list) and len(value) <= count and all(map(_whole(least, most), value))
    )


def _real(least: float, most: float) -> Check:
    return lambda value: type(value) is float and least <= value <= most  # NaN lies in no range


def _word(*words: bytes) -> Check:
    return lambda value: value in words


def _letters(value: Any) -> bool:
    word = bytes(value) if isinstance(value, bytes) else b""
    return (
        len(word) <= 32 and word.count(b"->") == 1 and word.replace(b"->", b"").replace(b",", b"").isalpha()
    )


FLAG = _whole(0, 1)
AXIS = _whole(-8, 7)
EPSILON = _real(0.0, 0.1)
WINDOW = {
    "kernel_shape": _wholes(2, 1, 256),
    "strides": _wholes(2, 1, 256),
    "pads": _wholes(4, 0, 256),
    "auto_pad": _word(b"NOTSET"),
}
REDUCTION = {"keepdims": FLAG, "noop_with_empty_axes": _whole(0, 0)}


@dataclass(frozen=True)
class Operator:
    """Rule of one operator: allowed inputs, outputs and attributes."""

    rule: shapes.Rule
    """Computes the shapes of its outputs."""
    inputs: tuple[int, int] = (1, 1)
    """Least and largest number."""
    attributes: Mapping[str, Check] | None = None
    needed: tuple[str, ...] = ()
    """Attributes that must be there."""


OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(
        ("Cos", "Sin", "Relu", "Sigmoid", "Tanh", "Identity", "Neg", "Sqrt", "Erf", "Exp"),
        Operator(shapes.same),
    ),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow"), Operator(shapes.combined, (2, 2))),
    "Greater": Operator(shapes.compared, (2, 2)),
    "Gelu": Operator(shapes.same, (1, 1), {"approximate": _word(b"none", b"tanh")}),
    "Softmax": Operator(shapes.same, (1, 1), {"axis": AXIS}),
    "Clip": Operator(shapes.clip, (1, 3)),
    "Cast": Operator(
        shapes.cast, (1, 1), {"to": lambda value: value in (1, 7, 10), "saturate": FLAG}, ("to",)
    ),
    "DequantizeLinear": Operator(shapes.dequantized, (2, 2), {"axis": AXIS, "block_size": _whole(0, 0)}),
    "BatchNormalization": Operator(
        shapes.normalised,
        (5, 5),
        {"epsilon": EPSILON, "momentum": _real(0, 1), "training_mode": _whole(0, 0)},
    ),
    "GroupNormalization": Operator(
        shapes.normalised,
        (3, 3),
        {"epsilon": EPSILON, "num_groups": _whole(1, 1024), "stash_type": FLAG},
        ("num_groups",),
    ),
    "LayerNormalization": Operator(
        shapes.layer_normalised, (2, 3), {"epsilon": EPSILON, "axis": AXIS, "stash_type": FLAG}
    ),
    "Reshape": Operator(shapes.reshaped, (2, 2), {"allowzero": FLAG}),
    "Transpose": Operator(shapes.transposed, (1, 1), {"perm": _wholes(8, 0, 7)}),
    "Concat": Operator(shapes.concatenated, (1, 64), {"axis": AXIS}, ("axis",)),
    "Slice": Operator(shapes.sliced, (3, 5)),
    "Split": Operator(shapes.split, (1, 1), {"axis": AXIS, "num_outputs": _whole(1, 64)}, ("num_outputs",)),
    "Squeeze": Operator(shapes.squeezed, (1, 2)),
    "Unsqueeze": Operator(shapes.unsqueezed, (2, 2)),
    "Expand": Operator(shapes.expanded, (2, 2)),
    "Gather": Operator(shapes.gathered, (2, 2), {"axis": AXIS}),
    "Shape": Operator(shapes.shape_of, (1, 1), {"start": AXIS, "end": _whole(-8, 8)}),
    "Resize": Operator(
        shapes.resized,
        (3, 4),
        {
            "mode": _word(b"nearest"),
            "nearest_mode": _word(b"floor", b"round_prefer_floor"),
            "coordinate_transformation_mode": _word(b"asymmetric", b"half_pixel"),
            "keep_aspect_ratio_policy": _word(b"stretch"),
            "antialias": _whole(0, 0),
            "exclude_outside": _whole(0, 0),
            "extrapolation_value": _real(0, 0),
            "cubic_coeff_a": _real(-0.75, -0.75),
        },
    ),
    "DepthToSpace": Operator(
        shapes.depth_to_space,
        (1, 1),
        {"blocksize": _whole(1, 64), "mode": _word(b"CRD", b"DCR")},
        ("blocksize",),
    ),
    "Einsum": Operator(shapes.einsum, (1, 4), {"equation": _letters}, ("equation",)),
    "MatMul": Operator(shapes.multiplied, (2, 2)),
    "Gemm": Operator(
        shapes.gemm,
        (2, 3),
        {"alpha": _real(-1e4, 1e4), "beta": _real(-1e4, 1e4), "transA": FLAG, "transB": FLAG},
    ),
    f"{RUNTIME_DOMAIN}::{PRODUCT_OF_BYTES}": Operator(
        shapes.multiplied_bytes,
        (3, 6),
        {
            "N": _whole(1, 1 << 20),
            "K": _whole(1, 1 << 20),
            "bits": _whole(8, 8),
            "block_size": lambda value: value in (16, 32, 64, 128),
            "accuracy_level": _whole(4, 4),
        },
        ("N", "K", "bits", "block_size"),
    ),
    "Conv": Operator(
        shapes.convolved, (2, 3), WINDOW | {"group": _whole(1, 1 << 16), "dilations": _wholes(2, 1, 64)}
    ),
    "AveragePool": Operator(
        shapes.pooled,
        (1, 1),
        WINDOW | {"ceil_mode": _whole(0, 0), "count_include_pad": FLAG, "dilations": _wholes(2, 1, 64)},
        ("kernel_shape",),
    ),
    "ReduceMean": Operator(shapes.reduced, (1, 2), REDUCTION),
    "ReduceSum": Operator(shapes.reduced, (1, 2), REDUCTION),
    "ArgMin": Operator(shapes.index_of, (1, 1), {"axis": AXIS, "keepdims": FLAG, "select_last_index": FLAG}),
    "Attention": Operator(
        shapes.attended,
        (3, 4),
        {
            "is_causal": FLAG,
            "qk_matmul_output_mode": _whole(0, 0),
            "softcap": _real(0, 0),
            "scale": _real(0, 1e4),
        },
    ),
}
"""Operators of bundles, as `export` writes them (`tests/export/test_operators.py` asks the exporter)."""


def check_graph(path: Path, spec: GraphSpec, axes: Mapping[str, int] | None = None) -> None:
    """Refuse a graph that differs from its declaration, or that contains anything outside the allow-list.

    Args:
        spec: what it takes and gives.
        axes: lengths of its dynamic axes, for the estimate of memory; 1 for those not given.

    Raises:
        BundleError: it does; the first problem is named.
    """
    header = OnnxHeader.read(path)
    header.refuse_what_bundles_never_hold(path)
    problem = next(_problems(header, spec, axes or {}), None)
    if problem is not None:
        raise BundleError(f"{path} is not a graph that bundles hold: {problem}; export it again")


def _problems(header: OnnxHeader, spec: GraphSpec, axes: Mapping[str, int]) -> Iterator[str]:
    standard = header.opsets.get("", header.opsets.get("ai.onnx", 0))
    if standard not in OPSETS or header.opsets.get(RUNTIME_DOMAIN, 1) != 1:
        yield (
            f"it uses versions {header.opsets} of the operators; known are {OPSETS.start} to "
            f"{OPSETS.stop - 1}"
        )
    yield from _wrong_ends(header, spec)
    for tensor in header.tensors.values():
        if tensor.kind not in shapes.SIZES:
            yield f"the weights {tensor.name[:80]!r} are of type {tensor.kind}"
        if tensor.location is None and not tensor.stored:
            yield f"the weights {tensor.name[:80]!r} are not stored as bytes"
    for node in header.nodes:
        yield from _wrong_node(node)
    try:
        taken = estimate(header, spec, axes)
    except ShapeProblem as error:
        yield str(error)
        return
    allowed = budget(header, spec, axes)
    if taken > allowed:
        yield (
            f"it would take {taken / 1e9:.1f} GB; {allowed / 1e9:.1f} GB are in proportion to its "
            "weights and pixels"
        )


def _wrong_ends(header: OnnxHeader, spec: GraphSpec) -> Iterator[str]:
    for found, declared, verb in (
        (header.inputs, spec.inputs, "takes"),
        (header.outputs, spec.outputs, "gives"),
    ):
        wanted = {tensor.name: (tensor.dtype, _fixed(tensor.shape)) for tensor in declared}
        actual = {name: (header.types[name], _fixed(shape)) for name, shape in found.items()}
        if list(actual.items()) != list(wanted.items()):
            yield f"it {verb} {str(actual)[:200]}, the manifest asks for {wanted}"


def _fixed(shape: tuple[int | str, ...]) -> tuple[int | None, ...]:
    return tuple(n if isinstance(n, int) else None for n in shape)


def _wrong_node(node: OnnxNode) -> Iterator[str]:
    operator = OPERATORS.get(node.operator)
    if operator is None:
        yield f"it uses the operator {node.operator[:80]!r}"
        return
    least, most = operator.inputs
    if not least <= len(node.inputs) <= most:
        yield f"{node.operator} has {len(node.inputs)} inputs"
    known = operator.attributes or {}
    for name, value in node.attributes.items():
        if name not in known:
            yield f"{node.operator} has the attribute {name[:80]!r}"
        elif not known[name](value):
            yield f"{node.operator} has {name} {str(value)[:80]}"
    for name in operator.needed:
        if name not in node.attributes:
            yield f"{node.operator} lacks {name}"


def estimate(header: OnnxHeader, spec: GraphSpec, axes: Mapping[str, int]) -> int:
    """Upper bound of the bytes of one run, computed from shapes: weights, constants derived from them, and
    live tensors.

    Raises:
        ShapeProblem: shapes contradict each other or the declared outputs, or a tensor is used before it is
        made.
    """
    known: dict[str, Tensor] = {name: of_weights(tensor) for name, tensor in header.tensors.items()}
    constant = set(known)
    for tensor in spec.inputs:
        known[tensor.name] = Tensor(_sized(tensor.shape, axes), tensor.dtype)
    last = {name: position for position, node in enumerate(header.nodes) for name in node.inputs}
    last |= {tensor.name: len(header.nodes) for tensor in spec.outputs}
    kept = sum(tensor.size for tensor in known.values())
    alive, peak = 0, 0
    for position, node in enumerate(header.nodes):
        inputs = [known.get(name) if name else None for name in node.inputs]
        missing = [name for name, found in zip(node.inputs, inputs, strict=True) if name and found is None]
        if missing:
            raise ShapeProblem(f"{node.operator} uses {missing[0][:80]!r} before it is made")
        try:
            made = OPERATORS[node.operator].rule(node, inputs)
        except ShapeProblem as error:
            raise ShapeProblem(f"{node.operator} that makes {node.outputs[:1]!r}: {error}") from None
        if len(made) != len(node.outputs) or any(name in known for name in node.outputs):
            raise ShapeProblem(f"{node.operator} makes {node.outputs[:4]!r}")
        known |= zip(node.outputs, made, strict=True)
        size = sum(tensor.size for tensor in made)
        if all(not name or name in constant for name in node.inputs):
            constant |= set(node.outputs)
            kept += size
            continue
        alive += size
        peak = max(peak, alive + scores_size(node, inputs))
        alive -= sum(
            known[name].size
            for name in {*node.inputs, *node.outputs}
            if _dies(name, position, last, constant, spec)
        )
    for tensor in spec.outputs:
        if tensor.name not in known or known[tensor.name].kind != tensor.dtype:
            raise ShapeProblem(f"{tensor.name} is not made, or of another type")
        wanted = _sized(tensor.shape, axes)
        found = known[tensor.name].shape
        if len(found) != len(wanted) or any(
            isinstance(n, int) and n != m for n, m in zip(tensor.shape, found, strict=True)
        ):
            raise ShapeProblem(f"{tensor.name} has shape {found}, {tensor.shape} is declared")
    return kept + peak


def _dies(name: str, position: int, last: Mapping[str, int], constant: set[str], spec: GraphSpec) -> bool:
    """Whether a tensor that was counted as alive is used here for the last time."""
    given = {tensor.name for tensor in spec.inputs}
    return bool(name) and name not in constant and name not in given and last.get(name, position) <= position


def _sized(shape: tuple[int | str, ...], axes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(n if isinstance(n, int) else axes.get(n, 1) for n in shape)


def budget(header: OnnxHeader, spec: GraphSpec, axes: Mapping[str, int]) -> int:
    """Bytes that a graph with these weights, inputs and outputs may take."""
    weights = sum(math.prod(tensor.shape) for tensor in header.tensors.values())
    ends = [_sized(tensor.shape, axes) for tensor in (*spec.inputs, *spec.outputs)]
    pixels = max(math.prod((shape[0], *shape[2:])) for shape in ends)
    return BASE + PER_WEIGHT * weights + PER_PIXEL * pixels
