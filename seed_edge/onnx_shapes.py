"""Shapes of every tensor of a graph, worked out from its header alone, for the operators that bundles use.

Rules are those of the ONNX operator specification (https://onnx.ai/onnx/operators). Small tensors whose
values decide shapes are computed too. What a rule does not cover is an error: a graph is refused rather than
guessed at.
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
"""Bytes of an element of each type that bundles use."""
MAX_ELEMENTS = 1 << 36
MAX_RANK = 8
MAX_KNOWN = 64
"""Elements of a tensor whose values are computed."""


class ShapeProblem(ValueError):
    """Shapes contradict each other, or depend on what is not known before the graph runs."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph."""

    shape: tuple[int, ...]
    kind: str
    """Element type; a key of `SIZES`."""
    value: NDArray[Any] | None = None
    """Its elements, where they are few and known."""

    def __post_init__(self) -> None:
        if (
            len(self.shape) > MAX_RANK
            or min(self.shape, default=1) < 0
            or math.prod(self.shape) > MAX_ELEMENTS
        ):
            raise ShapeProblem(f"a tensor has shape {self.shape}")
        if self.kind not in SIZES:
            raise ShapeProblem(f"a tensor has elements of type {self.kind}")

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * SIZES[self.kind]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


Inputs = Sequence[Tensor | None]
Rule = Callable[[OnnxNode, Inputs], list[Tensor]]


def of_weights(tensor: OnnxTensor) -> Tensor:
    """Weights as a tensor; small ones with their values."""
    known = (
        tensor.content is not None
        and math.prod(tensor.shape) <= MAX_KNOWN
        and tensor.kind in ("int64", "float32")
    )
    value = np.frombuffer(tensor.content or b"", f"<{tensor.kind[0]}{SIZES[tensor.kind]}") if known else None
    return Tensor(tensor.shape, tensor.kind, None if value is None else value.reshape(tensor.shape))


def _given(inputs: Inputs, position: int) -> Tensor:
    tensor = inputs[position] if position < len(inputs) else None
    if tensor is None:
        raise ShapeProblem(f"input {position} is missing")
    return tensor


def _known(inputs: Inputs, position: int) -> list[int]:
    """Integers of an input that decides a shape."""
    tensor = _given(inputs, position)
    if tensor.value is None or tensor.kind != "int64" or tensor.rank > 1:
        raise ShapeProblem("a shape depends on what is computed")
    return [int(number) for number in tensor.value.reshape(-1)]


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ShapeProblem(f"axis {axis} of {rank}")
    return axis % rank


def _need(fits: bool, what: str) -> None:
    if not fits:
        raise ShapeProblem(what)


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a combination element by element."""
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*shapes))
    except ValueError:
        raise ShapeProblem(f"shapes {shapes} do not fit each other") from None


def same(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """An output like the first input; other inputs combine with it element by element and never
    enlarge it.
    """
    first = _given(inputs, 0)
    return [Tensor(first.shape, first.kind)]


def clip(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Bounds are scalars."""
    _need(all(bound is None or math.prod(bound.shape) == 1 for bound in inputs[1:]), "a bound is no scalar")
    return same(node, inputs)


def normalised(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """BatchNormalization and GroupNormalization: parameters (channels,)."""
    first = _given(inputs, 0)
    _need(
        first.rank >= 2 and all(_given(inputs, i).shape == (first.shape[1],) for i in range(1, len(inputs))),
        "parameters",
    )
    groups = node.attributes.get("num_groups", 1)
    _need(first.shape[1] % groups == 0, f"{first.shape[1]} channels are no multiple of {groups} groups")
    return [Tensor(first.shape, first.kind)]


def layer_normalised(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """LayerNormalization: parameters have the shape of the normalised axes."""
    first = _given(inputs, 0)
    axis = _axis(node.attributes.get("axis", -1), first.rank)
    _need(all(p is None or p.shape == first.shape[axis:] for p in inputs[1:]), "parameters of another shape")
    return [Tensor(first.shape, first.kind)]


FOLDED: dict[str, Callable[[Any, Any], Any]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}


def combined(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Arithmetic of two inputs, with broadcasting."""
    one, other = _given(inputs, 0), _given(inputs, 1)
    shape, value = broadcast(one.shape, other.shape), None
    if (
        one.value is not None
        and other.value is not None
        and one.kind == other.kind == "int64"
        and node.operator in FOLDED
    ):
        value = _few(FOLDED[node.operator](one.value, other.value))
    return [Tensor(shape, one.kind, value)]


def compared(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """A truth value for each element."""
    return [Tensor(broadcast(_given(inputs, 0).shape, _given(inputs, 1).shape), "bool")]


def cast(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """The same elements as another type."""
    kind = {1: "float32", 7: "int64", 10: "float16"}[node.attributes["to"]]
    first = _given(inputs, 0)
    value = first.value.astype(kind) if first.value is not None and kind == "int64" == first.kind else None
    return [Tensor(first.shape, kind, value)]


def dequantized(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Bytes times a scale for each index of an axis."""
    first, scale = _given(inputs, 0), _given(inputs, 1)
    axis = _axis(node.attributes.get("axis", 1), max(first.rank, 1))
    _need(scale.shape in ((), (first.shape[axis],)), "scales of another number than the axis has")
    return [Tensor(first.shape, scale.kind)]


def reshaped(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Reshape: 0 keeps an axis unless `allowzero`, -1 is what is left."""
    first, wanted = _given(inputs, 0), _known(inputs, 1)
    if not node.attributes.get("allowzero", 0):
        _need(all(n or i < first.rank for i, n in enumerate(wanted)), "an axis to keep is not there")
        wanted = [n or first.shape[i] for i, n in enumerate(wanted)]
    count, rest = math.prod(first.shape), math.prod(n for n in wanted if n != -1)
    _need(wanted.count(-1) <= 1 and min(wanted, default=1) >= -1, f"it is to become {wanted}")
    if -1 in wanted:
        _need(rest > 0 and count % rest == 0, f"{first.shape} cannot become {wanted}")
        wanted = [count // rest if n == -1 else n for n in wanted]
    _need(math.prod(wanted) == count, f"{first.shape} cannot become {wanted}")
    return [Tensor(tuple(wanted), first.kind, None if first.value is None else first.value.reshape(wanted))]


def transposed(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Axes in another order."""
    first = _given(inputs, 0)
    order = node.attributes.get("perm", list(range(first.rank))[::-1])
    _need(sorted(order) == list(range(first.rank)), f"{order} is no order of {first.rank} axes")
    return [Tensor(tuple(first.shape[i] for i in order), first.kind)]


def concatenated(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Tensors one after the other along an axis."""
    parts = [_given(inputs, i) for i in range(len(inputs))]
    axis = _axis(node.attributes["axis"], parts[0].rank)
    outside = {part.shape[:axis] + part.shape[axis + 1 :] for part in parts if part.rank == parts[0].rank}
    _need(len(outside) == 1 and len({part.rank for part in parts}) == 1, "parts do not fit each other")
    shape = (*parts[0].shape[:axis], sum(part.shape[axis] for part in parts), *parts[0].shape[axis + 1 :])
    values = [part.value for part in parts if part.value is not None]
    value = _few(np.concatenate(values, axis)) if len(values) == len(parts) else None
    return [Tensor(shape, parts[0].kind, value)]


def sliced(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Slice: starts, ends, axes and steps are inputs."""
    first, starts, ends = _given(inputs, 0), _known(inputs, 1), _known(inputs, 2)
    axes = _known(inputs, 3) if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
    steps = _known(inputs, 4) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    _need(
        len(starts) == len(ends) == len(axes) == len(steps) and 0 not in steps,
        "its lists do not fit each other",
    )
    where = [slice(None)] * first.rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # past the beginning, going backwards, is None for Python
        where[_axis(axis, first.rank)] = slice(
            start, None if step < 0 and end < -first.shape[axis] else end, step
        )
    shape = tuple(len(range(*part.indices(n))) for part, n in zip(where, first.shape, strict=True))
    return [Tensor(shape, first.kind, None if first.value is None else first.value[tuple(where)])]


def split(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Equal parts along an axis; the last may be smaller."""
    first, parts = _given(inputs, 0), node.attributes["num_outputs"]
    _need(len(inputs) == 1 and parts == len(node.outputs), "a split in given sizes")
    axis = _axis(node.attributes.get("axis", 0), first.rank)
    length = -(-first.shape[axis] // parts)
    sizes = [*[length] * (parts - 1), first.shape[axis] - length * (parts - 1)]
    return [Tensor((*first.shape[:axis], size, *first.shape[axis + 1 :]), first.kind) for size in sizes]


def squeezed(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Axes of length 1 left out."""
    first = _given(inputs, 0)
    axes = {_axis(axis, first.rank) for axis in _known(inputs, 1)} if len(inputs) > 1 else set()
    axes = axes or {i for i, n in enumerate(first.shape) if n == 1}
    _need(all(first.shape[axis] == 1 for axis in axes), f"axes {sorted(axes)} of {first.shape} are not 1")
    shape = tuple(n for i, n in enumerate(first.shape) if i not in axes)
    return [Tensor(shape, first.kind, None if first.value is None else first.value.reshape(shape))]


def unsqueezed(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Axes of length 1 put in."""
    first, wanted = _given(inputs, 0), _known(inputs, 1)
    rank = first.rank + len(wanted)
    _need(rank <= MAX_RANK, f"{rank} axes")
    axes = {_axis(axis, rank) for axis in wanted}
    _need(len(axes) == len(wanted), "an axis is put in twice")
    rest = iter(first.shape)
    shape = tuple(1 if i in axes else next(rest) for i in range(rank))
    return [Tensor(shape, first.kind, None if first.value is None else first.value.reshape(shape))]


def expanded(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Broadcast to a shape."""
    first, wanted = _given(inputs, 0), _known(inputs, 1)
    _need(len(wanted) <= MAX_RANK and min(wanted, default=1) > 0, f"it is to become {wanted}")
    return [Tensor(broadcast(first.shape, tuple(wanted)), first.kind)]


def gathered(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Rows of an axis, by index."""
    first, indices = _given(inputs, 0), _given(inputs, 1)
    axis = _axis(node.attributes.get("axis", 0), first.rank)
    value = None
    if first.value is not None and indices.value is not None and indices.kind == "int64":
        _need(
            bool(((-first.shape[axis] <= indices.value) & (indices.value < first.shape[axis])).all()),
            "an index",
        )
        value = _few(np.take(first.value, indices.value, axis))
    return [Tensor((*first.shape[:axis], *indices.shape, *first.shape[axis + 1 :]), first.kind, value)]


def shape_of(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """A shape, or part of one, as integers."""
    first = _given(inputs, 0)
    part = first.shape[slice(node.attributes.get("start", 0), node.attributes.get("end"))]
    return [Tensor((len(part),), "int64", np.array(part, np.int64))]


def resized(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Resize by scales or to sizes."""
    first = _given(inputs, 0)
    if len(inputs) > 3 and inputs[3] is not None:
        sizes = _known(inputs, 3)
    else:
        scales = _given(inputs, 2).value
        _need(scales is not None and scales.shape == (first.rank,), "scales depend on what is computed")
        assert scales is not None
        _need(bool(np.all((scales > 0) & (scales <= 64))), f"it is scaled by {scales.tolist()}")
        sizes = [math.floor(n * float(scale)) for n, scale in zip(first.shape, scales, strict=True)]
    _need(len(sizes) == first.rank and min(sizes, default=1) > 0, f"it is to become {sizes}")
    return [Tensor(tuple(sizes), first.kind)]


def depth_to_space(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Channels become blocks of pixels."""
    first, block = _given(inputs, 0), node.attributes["blocksize"]
    _need(
        first.rank == 4 and first.shape[1] % block**2 == 0, f"channels of {first.shape} in blocks of {block}"
    )
    batch, channels, height, width = first.shape
    return [Tensor((batch, channels // block**2, height * block, width * block), first.kind)]


def einsum(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Products summed over the letters that the result lacks."""
    left, _, right = node.attributes["equation"].decode().partition("->")
    terms, lengths = left.split(","), dict[str, int]()
    _need(len(terms) == len(inputs), "terms and inputs differ in number")
    for position, term in enumerate(terms):
        shape = _given(inputs, position).shape
        _need(len(term) == len(shape), f"{term} for shape {shape}")
        for letter, length in zip(term, shape, strict=True):
            _need(lengths.setdefault(letter, length) == length, f"{letter} has two lengths")
    _need(set(right) <= set(lengths), "a letter of the result is new")
    return [Tensor(tuple(lengths[letter] for letter in right), _given(inputs, 0).kind)]


def multiplied(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """MatMul of stacks of matrices."""
    one, other = _given(inputs, 0), _given(inputs, 1)
    _need(
        one.rank >= 2 <= other.rank and one.shape[-1] == other.shape[-2], f"{one.shape} times {other.shape}"
    )
    return [Tensor((*broadcast(one.shape[:-2], other.shape[:-2]), one.shape[-2], other.shape[-1]), one.kind)]


def gemm(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """A product of two matrices, and a bias."""
    one, other = _given(inputs, 0), _given(inputs, 1)
    _need(one.rank == other.rank == 2, f"{one.shape} times {other.shape}")
    rows, inner = one.shape[:: -1 if node.attributes.get("transA", 0) else 1]
    again, columns = other.shape[:: -1 if node.attributes.get("transB", 0) else 1]
    _need(inner == again, f"{one.shape} times {other.shape}")
    if len(inputs) > 2:
        _need(
            broadcast(_given(inputs, 2).shape, (rows, columns)) == (rows, columns), "a bias of another shape"
        )
    return [Tensor((rows, columns), one.kind)]


def multiplied_bytes(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """ONNX Runtime's MatMulNBits, of 8 bits: (..., K) times bytes (N, blocks, block) and scales
    (N, blocks).
    """
    first, stored, scale = (_given(inputs, i) for i in range(3))
    outputs, depth, block = (node.attributes[name] for name in ("N", "K", "block_size"))
    blocks = -(-depth // block)
    _need(first.rank >= 1 and first.shape[-1] == depth, f"K is {depth} for {first.shape}")
    _need(
        stored.shape == (outputs, blocks, block) and stored.kind == "uint8", f"bytes of shape {stored.shape}"
    )
    _need(
        math.prod(scale.shape) == outputs * blocks and scale.kind == "float32",
        f"scales of shape {scale.shape}",
    )
    _need(len(inputs) <= 3 or (inputs[3] is None and inputs[4] is None), "zero points")
    if len(inputs) > 5:
        _need(_given(inputs, 5).shape == (outputs,), "a bias of another shape")
    return [Tensor((*first.shape[:-1], outputs), first.kind)]


def convolved(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Conv in two dimensions."""
    first, kernel, groups = _given(inputs, 0), _given(inputs, 1), node.attributes.get("group", 1)
    _need(
        first.rank == kernel.rank == 4 and first.shape[1] == kernel.shape[1] * groups,
        f"{first.shape} by {kernel.shape}",
    )
    _need(kernel.shape[0] % groups == 0, f"{kernel.shape[0]} channels are no multiple of {groups} groups")
    _need(tuple(node.attributes.get("kernel_shape", kernel.shape[2:])) == kernel.shape[2:], "kernel_shape")
    _need(len(inputs) < 3 or _given(inputs, 2).shape == (kernel.shape[0],), "a bias of another shape")
    return [Tensor((first.shape[0], kernel.shape[0], *_windows(node, first, kernel.shape[2:])), first.kind)]


def pooled(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """AveragePool in two dimensions."""
    first = _given(inputs, 0)
    _need(first.rank == 4 and len(node.attributes["kernel_shape"]) == 2, f"{first.shape}")
    return [
        Tensor((*first.shape[:2], *_windows(node, first, tuple(node.attributes["kernel_shape"]))), first.kind)
    ]


def _windows(node: OnnxNode, tensor: Tensor, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """How often a kernel fits along rows and columns."""
    defaults = {"pads": [0] * 4, "strides": [1, 1], "dilations": [1, 1]}
    pads, strides, dilations = (node.attributes.get(name, said) for name, said in defaults.items())
    _need(len(pads) == 4 and len(strides) == len(dilations) == 2, "pads, strides or dilations")
    found = []
    for i in range(2):
        free = tensor.shape[2 + i] + pads[i] + pads[2 + i] - dilations[i] * (kernel[i] - 1) - 1
        _need(free >= 0, f"a kernel of {kernel} on {tensor.shape}")
        found.append(free // strides[i] + 1)
    return tuple(found)


def reduced(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Sum or mean over axes; all of them where none are given."""
    first = _given(inputs, 0)
    axes = (
        {_axis(axis, first.rank) for axis in _known(inputs, 1)} if len(inputs) > 1 else set(range(first.rank))
    )
    return [Tensor(_without(first.shape, axes, node.attributes.get("keepdims", 1)), first.kind)]


def index_of(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """ArgMin along an axis."""
    first = _given(inputs, 0)
    axis = _axis(node.attributes.get("axis", 0), first.rank)
    return [Tensor(_without(first.shape, {axis}, node.attributes.get("keepdims", 1)), "int64")]


def _without(shape: tuple[int, ...], axes: set[int], keep: int) -> tuple[int, ...]:
    return tuple(1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes)


def attended(node: OnnxNode, inputs: Inputs) -> list[Tensor]:
    """Attention of queries, keys and values (batch, heads, length, width)."""
    query, key, value = (_given(inputs, i) for i in range(3))
    _need(
        query.rank == key.rank == value.rank == 4,
        "queries, keys and values are not (batch, heads, length, width)",
    )
    _need(
        query.shape[0] == key.shape[0] == value.shape[0] and key.shape[:3] == value.shape[:3],
        "keys and values differ",
    )
    _need(query.shape[1] % key.shape[1] == 0 and query.shape[3] == key.shape[3], "queries and keys differ")
    if len(inputs) > 3 and inputs[3] is not None:
        scores = (*query.shape[:3], key.shape[2])
        _need(broadcast(inputs[3].shape, scores) == scores, "a mask of another shape")
    return [Tensor((*query.shape[:3], value.shape[3]), query.kind)]


def scores_size(node: OnnxNode, inputs: Inputs) -> int:
    """Bytes of the scores that Attention holds while it works; 0 for other operators."""
    if node.operator != "Attention":
        return 0
    query, key = _given(inputs, 0), _given(inputs, 1)
    return math.prod(query.shape[:3]) * key.shape[2] * SIZES["float32"]


def _few(value: NDArray[Any]) -> NDArray[Any] | None:
    return value if value.size <= MAX_KNOWN else None
