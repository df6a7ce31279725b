"""Shape inference for the operators that bundles use, from the header of a graph.

Rules follow the ONNX operator specification (https://onnx.ai/onnx/operators). The values of small tensors
that determine shapes are computed too. A case that a rule does not cover is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seed_edge.onnx_header import OnnxNode, OnnxTensor

SIZES = {"float32": 4, "float16": 2, "int64": 8, "int8": 1, "uint8": 1, "bool": 1}
"""Bytes per element of each type that bundles use."""
MAX_ELEMENTS = 1 << 36
MAX_RANK = 8
MAX_VALUE_ELEMENTS = 64
"""Maximum number of elements of a tensor whose values are computed."""


class ShapeError(ValueError):
    """Shapes are inconsistent, or depend on values that are unknown before the graph runs."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph."""

    shape: tuple[int, ...]
    kind: str
    """Element type; a key of `SIZES`."""
    value: NDArray[Any] | None = None
    """Its elements, if they are few and known."""

    def __post_init__(self) -> None:
        if (
            len(self.shape) > MAX_RANK
            or min(self.shape, default=1) < 0
            or math.prod(self.shape) > MAX_ELEMENTS
        ):
            raise ShapeError(f"a tensor has shape {self.shape}")
        if self.kind not in SIZES:
            raise ShapeError(f"a tensor has type {self.kind}")

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * SIZES[self.kind]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


Inputs = Sequence[Tensor | None]
Rule = Callable[[OnnxNode, Inputs], list[Tensor]]


def from_weights(tensor: OnnxTensor) -> Tensor:
    """Weights as a tensor, with values if they are small."""
    has_value = (
        tensor.content is not None
        and math.prod(tensor.shape) <= MAX_VALUE_ELEMENTS
        and tensor.kind in ("int64", "float32")
    )
    value = (
        np.frombuffer(tensor.content or b"", f"<{tensor.kind[0]}{SIZES[tensor.kind]}") if has_value else None
    )
    return Tensor(tensor.shape, tensor.kind, None if value is None else value.reshape(tensor.shape))


def _required_input(inputs: Inputs, position: int) -> Tensor:
    tensor = inputs[position] if position < len(inputs) else None
    if tensor is None:
        raise ShapeError(f"input {position} is missing")
    return tensor


def _constant_ints(inputs: Inputs, position: int) -> list[int]:
    """Integers of an input that determines a shape."""
    tensor = _required_input(inputs, position)
    if tensor.value is None or tensor.kind != "int64" or tensor.rank > 1:
        raise ShapeError("a shape depends on computed values")
    return [int(number) for number in tensor.value.reshape(-1)]


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ShapeError(f"axis {axis} of {rank}")
    return axis % rank


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ShapeError(problem)


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Shape after broadcasting."""
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*shapes))
    except ValueError:
        raise ShapeError(f"shapes {shapes} cannot be broadcast") from None


def unary(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Elementwise operators: the output has the shape and type of the first input."""
    first = _required_input(inputs, 0)
    return [Tensor(first.shape, first.kind)]


def clip(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Clip: bounds are scalars."""
    _require(
        all(bound is None or math.prod(bound.shape) == 1 for bound in inputs[1:]), "a bound is not a scalar"
    )
    return unary(node, inputs)


def channel_norm(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """BatchNormalization and GroupNormalization: parameters (channels,)."""
    first = _required_input(inputs, 0)
    _require(
        first.rank >= 2
        and all(_required_input(inputs, i).shape == (first.shape[1],) for i in range(1, len(inputs))),
        "parameters of the wrong shape",
    )
    groups = node.attributes.get("num_groups", 1)
    _require(first.shape[1] % groups == 0, f"{first.shape[1]} channels are not a multiple of {groups} groups")
    return [Tensor(first.shape, first.kind)]


def layer_norm(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """LayerNormalization: parameters have the shape of the normalized axes."""
    first = _required_input(inputs, 0)
    axis = _axis(node.attributes.get("axis", -1), first.rank)
    _require(
        all(p is None or p.shape == first.shape[axis:] for p in inputs[1:]), "parameters of another shape"
    )
    return [Tensor(first.shape, first.kind)]


INTEGER_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
}


def binary(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Arithmetic operators of two inputs, with broadcasting."""
    one, other = _required_input(inputs, 0), _required_input(inputs, 1)
    shape, value = broadcast(one.shape, other.shape), None
    if (
        one.value is not None
        and other.value is not None
        and one.kind == other.kind == "int64"
        and node.operator in INTEGER_FUNCTIONS
    ):
        value = _if_small(INTEGER_FUNCTIONS[node.operator](one.value, other.value))
    return [Tensor(shape, one.kind, value)]


def comparison(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Greater, with broadcasting."""
    return [Tensor(broadcast(_required_input(inputs, 0).shape, _required_input(inputs, 1).shape), "bool")]


def cast(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Cast: same shape, another type."""
    kind = {1: "float32", 7: "int64", 10: "float16"}[node.attributes["to"]]
    first = _required_input(inputs, 0)
    value = first.value.astype(kind) if first.value is not None and kind == "int64" == first.kind else None
    return [Tensor(first.shape, kind, value)]


def dequantize_linear(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """DequantizeLinear: one scale, or one for each index of an axis."""
    first, scale = _required_input(inputs, 0), _required_input(inputs, 1)
    axis = _axis(node.attributes.get("axis", 1), max(first.rank, 1))
    _require(scale.shape in ((), (first.shape[axis],)), "the number of scales differs from the axis")
    return [Tensor(first.shape, scale.kind)]


def reshape(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Reshape: 0 keeps the size of an axis unless `allowzero`, -1 is inferred."""
    first, target = _required_input(inputs, 0), _constant_ints(inputs, 1)
    if not node.attributes.get("allowzero", 0):
        _require(all(n or i < first.rank for i, n in enumerate(target)), "a kept axis does not exist")
        target = [n or first.shape[i] for i, n in enumerate(target)]
    count, rest = math.prod(first.shape), math.prod(n for n in target if n != -1)
    _require(target.count(-1) <= 1 and min(target, default=1) >= -1, f"the target shape is {target}")
    if -1 in target:
        _require(rest > 0 and count % rest == 0, f"{first.shape} cannot become {target}")
        target = [count // rest if n == -1 else n for n in target]
    _require(math.prod(target) == count, f"{first.shape} cannot become {target}")
    return [Tensor(tuple(target), first.kind, None if first.value is None else first.value.reshape(target))]


def transpose(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Transpose."""
    first = _required_input(inputs, 0)
    order = node.attributes.get("perm", list(range(first.rank))[::-1])
    _require(sorted(order) == list(range(first.rank)), f"{order} is not a permutation of {first.rank} axes")
    return [Tensor(tuple(first.shape[i] for i in order), first.kind)]


def concat(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Concat along an axis."""
    parts = [_required_input(inputs, i) for i in range(len(inputs))]
    axis = _axis(node.attributes["axis"], parts[0].rank)
    outside = {part.shape[:axis] + part.shape[axis + 1 :] for part in parts if part.rank == parts[0].rank}
    _require(len(outside) == 1 and len({part.rank for part in parts}) == 1, "shapes of the parts differ")
    shape = (*parts[0].shape[:axis], sum(part.shape[axis] for part in parts), *parts[0].shape[axis + 1 :])
    values = [part.value for part in parts if part.value is not None]
    value = _if_small(np.concatenate(values, axis)) if len(values) == len(parts) else None
    return [Tensor(shape, parts[0].kind, value)]


def slice_axes(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Slice: starts, ends, axes and steps are inputs."""
    first, starts, ends = _required_input(inputs, 0), _constant_ints(inputs, 1), _constant_ints(inputs, 2)
    axes = (
        _constant_ints(inputs, 3) if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
    )
    steps = _constant_ints(inputs, 4) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    _require(
        len(starts) == len(ends) == len(axes) == len(steps) and 0 not in steps,
        "starts, ends, axes and steps differ in length, or a step is 0",
    )
    slices = [slice(None)] * first.rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # with a negative step, an end before the first element is None in Python
        slices[_axis(axis, first.rank)] = slice(
            start, None if step < 0 and end < -first.shape[axis] else end, step
        )
    shape = tuple(len(range(*part.indices(n))) for part, n in zip(slices, first.shape, strict=True))
    return [Tensor(shape, first.kind, None if first.value is None else first.value[tuple(slices)])]


def split(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Split into equal parts along an axis; the last may be smaller."""
    first, parts = _required_input(inputs, 0), node.attributes["num_outputs"]
    _require(len(inputs) == 1 and parts == len(node.outputs), "a split with explicit sizes")
    axis = _axis(node.attributes.get("axis", 0), first.rank)
    length = -(-first.shape[axis] // parts)
    sizes = [*[length] * (parts - 1), first.shape[axis] - length * (parts - 1)]
    return [Tensor((*first.shape[:axis], size, *first.shape[axis + 1 :]), first.kind) for size in sizes]


def squeeze(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Squeeze: axes of length 1 are removed."""
    first = _required_input(inputs, 0)
    axes = {_axis(axis, first.rank) for axis in _constant_ints(inputs, 1)} if len(inputs) > 1 else set()
    axes = axes or {i for i, n in enumerate(first.shape) if n == 1}
    _require(all(first.shape[axis] == 1 for axis in axes), f"axes {sorted(axes)} of {first.shape} are not 1")
    shape = tuple(n for i, n in enumerate(first.shape) if i not in axes)
    return [Tensor(shape, first.kind, None if first.value is None else first.value.reshape(shape))]


def unsqueeze(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Unsqueeze: axes of length 1 are inserted."""
    first, inserted = _required_input(inputs, 0), _constant_ints(inputs, 1)
    rank = first.rank + len(inserted)
    _require(rank <= MAX_RANK, f"{rank} axes")
    axes = {_axis(axis, rank) for axis in inserted}
    _require(len(axes) == len(inserted), "an axis is inserted twice")
    rest = iter(first.shape)
    shape = tuple(1 if i in axes else next(rest) for i in range(rank))
    return [Tensor(shape, first.kind, None if first.value is None else first.value.reshape(shape))]


def expand(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Expand: broadcast to a shape."""
    first, target = _required_input(inputs, 0), _constant_ints(inputs, 1)
    _require(len(target) <= MAX_RANK and min(target, default=1) > 0, f"the target shape is {target}")
    return [Tensor(broadcast(first.shape, tuple(target)), first.kind)]


def gather(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Gather along an axis."""
    first, indices = _required_input(inputs, 0), _required_input(inputs, 1)
    axis = _axis(node.attributes.get("axis", 0), first.rank)
    value = None
    if first.value is not None and indices.value is not None and indices.kind == "int64":
        _require(
            bool(((-first.shape[axis] <= indices.value) & (indices.value < first.shape[axis])).all()),
            "an index is out of range",
        )
        value = _if_small(np.take(first.value, indices.value, axis))
    return [Tensor((*first.shape[:axis], *indices.shape, *first.shape[axis + 1 :]), first.kind, value)]


def shape_op(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Shape, or a part of it, as integers."""
    first = _required_input(inputs, 0)
    part = first.shape[slice(node.attributes.get("start", 0), node.attributes.get("end"))]
    return [Tensor((len(part),), "int64", np.array(part, np.int64))]


def resize(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Resize by scales or to sizes."""
    first = _required_input(inputs, 0)
    if len(inputs) > 3 and inputs[3] is not None:
        sizes = _constant_ints(inputs, 3)
    else:
        scales = _required_input(inputs, 2).value
        _require(scales is not None and scales.shape == (first.rank,), "scales depend on computed values")
        assert scales is not None
        _require(bool(np.all((scales > 0) & (scales <= 64))), f"it is scaled by {scales.tolist()}")
        sizes = [math.floor(n * float(scale)) for n, scale in zip(first.shape, scales, strict=True)]
    _require(len(sizes) == first.rank and min(sizes, default=1) > 0, f"the target shape is {sizes}")
    return [Tensor(tuple(sizes), first.kind)]


def depth_to_space(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """DepthToSpace: channels become blocks of pixels."""
    first, block = _required_input(inputs, 0), node.attributes["blocksize"]
    _require(
        first.rank == 4 and first.shape[1] % block**2 == 0, f"channels of {first.shape} in blocks of {block}"
    )
    batch, channels, height, width = first.shape
    return [Tensor((batch, channels // block**2, height * block, width * block), first.kind)]


def einsum(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Einsum."""
    left, _, right = node.attributes["equation"].decode().partition("->")
    terms, lengths = left.split(","), dict[str, int]()
    _require(len(terms) == len(inputs), "terms and inputs differ in number")
    for position, term in enumerate(terms):
        shape = _required_input(inputs, position).shape
        _require(len(term) == len(shape), f"{term} for shape {shape}")
        for letter, length in zip(term, shape, strict=True):
            _require(lengths.setdefault(letter, length) == length, f"{letter} has two lengths")
    _require(set(right) <= set(lengths), "an output letter is not in the inputs")
    return [Tensor(tuple(lengths[letter] for letter in right), _required_input(inputs, 0).kind)]


def matmul(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """MatMul of batches of matrices."""
    a, b = _required_input(inputs, 0), _required_input(inputs, 1)
    _require(a.rank >= 2 <= b.rank and a.shape[-1] == b.shape[-2], f"{a.shape} times {b.shape}")
    return [Tensor((*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), a.kind)]


def gemm(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Gemm: product of two matrices, plus a bias."""
    a, b = _required_input(inputs, 0), _required_input(inputs, 1)
    _require(a.rank == b.rank == 2, f"{a.shape} times {b.shape}")
    rows, inner = a.shape[:: -1 if node.attributes.get("transA", 0) else 1]
    b_rows, columns = b.shape[:: -1 if node.attributes.get("transB", 0) else 1]
    _require(inner == b_rows, f"{a.shape} times {b.shape}")
    if len(inputs) > 2:
        _require(
            broadcast(_required_input(inputs, 2).shape, (rows, columns)) == (rows, columns),
            "a bias of another shape",
        )
    return [Tensor((rows, columns), a.kind)]


def matmul_nbits(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """ONNX Runtime's MatMulNBits, 8 bits: (..., K) times bytes (N, blocks, block), scales (N, blocks)."""
    first, stored, scale = (_required_input(inputs, i) for i in range(3))
    outputs, depth, block = (node.attributes[name] for name in ("N", "K", "block_size"))
    blocks = -(-depth // block)
    _require(first.rank >= 1 and first.shape[-1] == depth, f"K is {depth} for {first.shape}")
    _require(
        stored.shape == (outputs, blocks, block) and stored.kind == "uint8", f"bytes of shape {stored.shape}"
    )
    _require(
        math.prod(scale.shape) == outputs * blocks and scale.kind == "float32",
        f"scales of shape {scale.shape}",
    )
    _require(len(inputs) <= 3 or (inputs[3] is None and inputs[4] is None), "zero points")
    if len(inputs) > 5:
        _require(_required_input(inputs, 5).shape == (outputs,), "a bias of another shape")
    return [Tensor((*first.shape[:-1], outputs), first.kind)]


def conv(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Conv in two dimensions."""
    first, kernel, groups = (
        _required_input(inputs, 0),
        _required_input(inputs, 1),
        node.attributes.get("group", 1),
    )
    _require(
        first.rank == kernel.rank == 4 and first.shape[1] == kernel.shape[1] * groups,
        f"{first.shape} by {kernel.shape}",
    )
    _require(
        kernel.shape[0] % groups == 0, f"{kernel.shape[0]} channels are not a multiple of {groups} groups"
    )
    _require(tuple(node.attributes.get("kernel_shape", kernel.shape[2:])) == kernel.shape[2:], "kernel_shape")
    _require(
        len(inputs) < 3 or _required_input(inputs, 2).shape == (kernel.shape[0],), "a bias of another shape"
    )
    return [
        Tensor((first.shape[0], kernel.shape[0], *_window_counts(node, first, kernel.shape[2:])), first.kind)
    ]


def average_pool(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """AveragePool in two dimensions."""
    first = _required_input(inputs, 0)
    _require(first.rank == 4 and len(node.attributes["kernel_shape"]) == 2, f"{first.shape}")
    return [
        Tensor(
            (*first.shape[:2], *_window_counts(node, first, tuple(node.attributes["kernel_shape"]))),
            first.kind,
        )
    ]


def _window_counts(node: OnnxNode, tensor: Tensor, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Number of kernel positions along rows and columns."""
    defaults = {"pads": [0] * 4, "strides": [1, 1], "dilations": [1, 1]}
    pads, strides, dilations = (node.attributes.get(name, default) for name, default in defaults.items())
    _require(len(pads) == 4 and len(strides) == len(dilations) == 2, "pads, strides or dilations")
    counts = []
    for i in range(2):
        free = tensor.shape[2 + i] + pads[i] + pads[2 + i] - dilations[i] * (kernel[i] - 1) - 1
        _require(free >= 0, f"a kernel of {kernel} on {tensor.shape}")
        counts.append(free // strides[i] + 1)
    return tuple(counts)


def reduce(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """ReduceSum and ReduceMean over axes; over all axes by default."""
    first = _required_input(inputs, 0)
    axes = (
        {_axis(axis, first.rank) for axis in _constant_ints(inputs, 1)}
        if len(inputs) > 1
        else set(range(first.rank))
    )
    return [Tensor(_reduced_shape(first.shape, axes, node.attributes.get("keepdims", 1)), first.kind)]


def arg_min(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """ArgMin along an axis."""
    first = _required_input(inputs, 0)
    axis = _axis(node.attributes.get("axis", 0), first.rank)
    return [Tensor(_reduced_shape(first.shape, {axis}, node.attributes.get("keepdims", 1)), "int64")]


def _reduced_shape(shape: tuple[int, ...], axes: set[int], keep: int) -> tuple[int, ...]:
    return tuple(1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes)


def attention(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Attention of queries, keys and values (batch, heads, length, width)."""
    query, key, value = (_required_input(inputs, i) for i in range(3))
    _require(
        query.rank == key.rank == value.rank == 4,
        "queries, keys and values are not (batch, heads, length, width)",
    )
    _require(
        query.shape[0] == key.shape[0] == value.shape[0] and key.shape[:3] == value.shape[:3],
        "keys and values differ",
    )
    _require(query.shape[1] % key.shape[1] == 0 and query.shape[3] == key.shape[3], "queries and keys differ")
    if len(inputs) > 3 and inputs[3] is not None:
        scores = (*query.shape[:3], key.shape[2])
        _require(broadcast(inputs[3].shape, scores) == scores, "a mask of another shape")
    return [Tensor((*query.shape[:3], value.shape[3]), query.kind)]


def attention_scores_bytes(node: OnnxNode, inputs: Inputs) -> int:
    """Bytes of the attention scores, which Attention allocates while it runs; 0 for other operators."""
    if node.operator != "Attention":
        return 0
    query, key = _required_input(inputs, 0), _required_input(inputs, 1)
    return math.prod(query.shape[:3]) * key.shape[2] * SIZES["float32"]


def _if_small(value: NDArray[Any]) -> NDArray[Any] | None:
    return value if value.size <= MAX_VALUE_ELEMENTS else None
