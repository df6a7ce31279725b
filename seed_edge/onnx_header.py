"""Reads and checks the structure of an ONNX file before native code reads it. Weights are skipped.

An ONNX file is one protocol buffer message (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; wire
format: https://protobuf.dev/programming-guides/encoding). Field numbers in this module are those of
onnx.proto.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from seed_edge.errors import BundleError, SeedEdgeError
from seed_edge.inputs import open_regular

MAX_NODES, MAX_TENSORS, MAX_DIMENSIONS = 200_000, 100_000, 8
MAX_NAME_LENGTH = 1 << 12
MAX_VALUES = 1 << 48
STANDARD = ("", "ai.onnx")
"""Names of the standard operator domain."""
RUNTIME_DOMAIN, MATMUL_NBITS = "com.microsoft", "MatMulNBits"
"""The only operator of another domain that bundles may use; it is part of ONNX Runtime."""
ELEMENT_SIZES = {
    1: ("float32", 4), 2: ("uint8", 1), 3: ("int8", 1), 4: ("uint16", 2), 5: ("int16", 2),
    6: ("int32", 4), 7: ("int64", 8), 9: ("bool", 1), 10: ("float16", 2), 11: ("float64", 8),
    12: ("uint32", 4), 13: ("uint64", 8), 16: ("bfloat16", 2),
}  # fmt: skip
"""TensorProto.DataType: name and bytes per element."""
HALF_BYTES = {21: "uint4", 22: "int4"}
EXTERNAL = 1
"""TensorProto.DataLocation: the weights are in another file."""
VARINT, LONG, BYTES, SHORT = 0, 1, 2, 5
"""Wire types."""
FLOAT, INT, STRING, FLOATS, INTS = 1, 2, 3, 6, 7
"""AttributeProto.AttributeType: the types whose values are read."""
MAX_CONTENT_BYTES = 1 << 10
"""Maximum size of weights whose content is read: shapes and scales that determine the sizes of other tensors.
"""
MAX_ATTRIBUTE_VALUES = 64
MAX_LINKS = 1_000_000
"""Maximum number of operator inputs and outputs of a graph."""


@dataclass(frozen=True)
class OnnxTensor:
    """A weight tensor of a graph."""

    name: str
    shape: tuple[int, ...]
    kind: str
    size: int
    """Size in bytes."""
    location: str | None = None
    """Name of the external file with the weights; None if they are in the graph."""
    offset: int = 0
    """Offset in the external file."""
    stored: bool = True
    """Whether the weights are stored as raw bytes, not as a list of numbers."""
    content: bytes | None = None
    """Little-endian values, if they are at most `MAX_CONTENT_BYTES` long."""


@dataclass(frozen=True)
class OnnxNode:
    """One operator of a graph."""

    operator: str
    """`MatMul`, or `domain::operator` for a non-standard domain."""
    inputs: tuple[str, ...]
    """Names; empty for an omitted optional input."""
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    """Numbers, bytes or lists of numbers by name; None for other types."""


@dataclass
class OnnxHeader:
    """Structure of an ONNX file."""

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    """Version by domain."""
    operators: Counter[str] = field(default_factory=Counter)
    """Number of nodes of each operator; `domain::operator` for non-standard domains."""
    inputs: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    """Shapes by name; dynamic axes are strings."""
    outputs: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    """Element types of inputs and outputs, by name."""
    nodes: list[OnnxNode] = field(default_factory=list)
    """In the order of the file."""
    tensors: dict[str, OnnxTensor] = field(default_factory=dict)
    functions: int = 0
    subgraphs: int = 0

    @classmethod
    def read(cls, path: Path) -> OnnxHeader:
        """Read a header.

        Raises:
            BundleError: the file is not an ONNX file, is truncated, or is inconsistent.
        """
        try:
            with open_regular(path, BundleError) as file:
                if not file.read(1):
                    raise BundleError(f"{path} is empty; copy or export it again")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    return _Reader(path, data).model()
        except SeedEdgeError:
            raise
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror})") from error

    def check_bundle_rules(self, path: Path) -> None:
        """Check that the graph has no custom operators, functions or control flow, and that external weights
        are in the file `NAME.data` next to it.

        Raises:
            BundleError: it breaks one of these rules; the message names the first.
        """
        allowed = f"{RUNTIME_DOMAIN}::{MATMUL_NBITS}"
        custom = sorted(name for name in self.operators if "::" in name and name != allowed)
        custom += sorted(domain for domain in self.opsets if domain not in (*STANDARD, RUNTIME_DOMAIN))
        if custom:
            raise BundleError(f"{path} uses {custom[0]}, which bundles cannot use; export it again")
        if self.functions or self.subgraphs:
            raise BundleError(
                f"{path} contains functions or subgraphs, which bundles cannot; export it again"
            )
        data = path.with_name(path.name + ".data")
        for tensor in self.tensors.values():
            if tensor.location is None:
                continue
            if tensor.location != data.name:
                raise BundleError(
                    f"{path}: weights {tensor.name!r} are in {tensor.location!r}, not in {data.name}"
                )
            if not data.is_file() or data.is_symlink() or tensor.offset + tensor.size > data.stat().st_size:
                raise BundleError(
                    f"{path}: weights {tensor.name!r} are outside {data.name}; copy or export it again"
                )


def signed(number: int) -> int:
    """Signed value of an unsigned 64-bit integer of the wire format (two's complement)."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


class _Reader:
    """Parses protocol buffer messages; `data` is the whole file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.header, self.links = path, data, OnnxHeader(), 0

    def model(self) -> OnnxHeader:
        header, graphs = self.header, 0
        for number, value in self.fields(0, len(self.data)):
            if number == 1:
                header.ir_version = self.integer(value)
            elif number == 2:
                header.producer = self.text(value)
            elif number == 8:
                domain, version = "", 0
                for inner, part in self.message(value):
                    if inner == 1:
                        domain = self.text(part)
                    else:
                        version = self.integer(part)
                header.opsets[domain] = version
            elif number == 7:
                graphs += 1
                self.graph(value)
            elif number == 25:
                header.functions += 1
        if graphs != 1 or not header.ir_version or not header.opsets:
            raise BundleError(
                f"{self.path} is not an ONNX file (its graph or its version is missing); export again"
            )
        return header

    def graph(self, value: Any) -> None:
        for number, part in self.message(value):
            if number == 1:
                self.node(part)
            elif number == 5:
                self.add_tensor(part)
            elif number in (11, 12):
                name, shape = self.value_info(part)
                (self.header.inputs if number == 11 else self.header.outputs)[name] = shape
            elif number == 15:
                raise self.broken("sparse weights")

    def node(self, value: Any) -> None:
        kind, domain = "", ""
        names: tuple[list[str], list[str]] = ([], [])
        attributes: dict[str, Any] = {}
        for number, part in self.message(value):
            if number in (1, 2):
                names[number - 1].append(self.text(part))
                self.links += 1
            elif number == 4:
                kind = self.text(part)
            elif number == 7:
                domain = self.text(part)
            elif number == 5:
                name, content = self.attribute(part)
                if name in attributes:
                    raise self.broken(f"duplicate attribute {name!r}")
                attributes[name] = content
        operator = kind if domain in STANDARD else f"{domain}::{kind}"
        self.header.nodes.append(OnnxNode(operator, tuple(names[0]), tuple(names[1]), attributes))
        self.header.operators[operator] += 1
        if len(self.header.nodes) > MAX_NODES or self.links > MAX_LINKS:
            raise self.broken(f"over {MAX_NODES:,} operators, or over {MAX_LINKS:,} inputs and outputs")

    def attribute(self, value: Any) -> tuple[str, Any]:
        """Name and value of an attribute; the value is None for types that are not read."""
        name, kind, values = "", 0, dict[int, Any]()
        lists: dict[int, list[Any]] = {7: [], 8: []}
        for number, part in self.message(value):
            if number in (6, 11):
                self.header.subgraphs += 1
            elif number == 5:
                self.tensor(part)
            elif number in (10, 22, 23):
                raise self.broken("an attribute with a list of tensors, or a sparse tensor")
            elif number == 1:
                name = self.text(part)
            elif number == 20:
                kind = self.integer(part)
            elif number == 2:
                values[FLOAT] = self.float32(part)
            elif number == 3:
                values[INT] = signed(self.integer(part))
            elif number == 4:
                values[STRING] = self.short(part)
            elif number == 7:
                lists[7] += self.floats(part)
            elif number == 8:
                lists[8] += (
                    [signed(part)]
                    if isinstance(part, int)
                    else map(signed, self.packed(part, MAX_ATTRIBUTE_VALUES))
                )
        if max(map(len, lists.values())) > MAX_ATTRIBUTE_VALUES:
            raise self.broken(f"attribute {name!r} has over {MAX_ATTRIBUTE_VALUES} values")
        values |= {FLOATS: lists[7], INTS: lists[8]}
        return name, values.get(kind)

    def value_info(self, value: Any) -> tuple[str, tuple[int | str, ...]]:
        name, shape, kind = "", list[int | str](), 0
        for number, part in self.message(value):
            if number == 1:
                name = self.text(part)
            elif number == 2:
                kind, shape = self.tensor_type(part)
        if len(shape) > MAX_DIMENSIONS:
            raise self.broken(f"{name!r} has {len(shape)} dimensions")
        self.header.types[name] = ELEMENT_SIZES[kind][0] if kind in ELEMENT_SIZES else f"type {kind}"
        return name, tuple(shape)

    def tensor_type(self, value: Any) -> tuple[int, list[int | str]]:
        """Element type and shape in a TypeProto."""
        kind, shape = 0, list[int | str]()
        for number, tensor in self.message(value):
            if number != 1:
                raise self.broken("an input or output that is not a tensor")
            for inner, part in self.message(tensor):
                if inner == 1:
                    kind = self.integer(part)
                elif inner == 2:
                    shape = [self.dimension(dimension) for axis, dimension in self.message(part) if axis == 1]
        return kind, shape

    def dimension(self, value: Any) -> int | str:
        """Size of a fixed axis, or name of a dynamic one."""
        size: int | str = "?"
        for number, part in self.message(value):
            size = self.integer(part) if number == 1 else self.text(part) if number == 2 else size
        return size

    def add_tensor(self, value: Any) -> None:
        tensor = self.tensor(value)
        if tensor.name in self.header.tensors:
            raise self.broken(f"duplicate weights {tensor.name!r}")
        self.header.tensors[tensor.name] = tensor
        if len(self.header.tensors) > MAX_TENSORS:
            raise self.broken(f"over {MAX_TENSORS:,} weights")

    def tensor(self, value: Any) -> OnnxTensor:
        name, kind, location, external = "", 0, 0, dict[str, str]()
        raw: tuple[int, int] | None = None
        shape: list[int] = []
        for number, part in self.message(value):
            if number == 1:
                shape += [part] if isinstance(part, int) else self.packed(part, MAX_DIMENSIONS + 1)
            elif number == 2:
                kind = self.integer(part)
            elif number == 8:
                name = self.text(part)
            elif number == 9:
                raw = self.span(part)
            elif number == 13:
                key, entry = self.entry(part)
                external[key] = entry
            elif number == 14:
                location = self.integer(part)
        if (
            len(shape) > MAX_DIMENSIONS
            or any(n < 0 or n > MAX_VALUES for n in shape)
            or prod(shape) > MAX_VALUES
        ):
            raise self.broken(f"weights {name!r} have shape {tuple(shape)}")
        size, dtype = self.size_of(kind, prod(shape), name)
        if location == EXTERNAL:
            numbers = [
                external.get(key, default) for key, default in (("offset", "0"), ("length", str(size)))
            ]
            if not all(number.isascii() and number.isdecimal() and len(number) < 20 for number in numbers):
                raise self.broken(f"weights {name!r} have the location {external}")
            offset, length = map(int, numbers)
            if length != size:
                raise self.broken(f"weights {name!r} need {size:,} bytes, but {length:,} are declared")
            return OnnxTensor(name, tuple(shape), dtype, size, external.get("location", ""), offset)
        if raw is not None and raw[1] - raw[0] != size:
            raise self.broken(f"weights {name!r} need {size:,} bytes, but have {raw[1] - raw[0]:,}")
        content = bytes(self.data[raw[0] : raw[1]]) if raw is not None and size <= MAX_CONTENT_BYTES else None
        return OnnxTensor(
            name, tuple(shape), dtype, size, stored=raw is not None or not size, content=content
        )

    def size_of(self, kind: int, count: int, name: str) -> tuple[int, str]:
        """Size in bytes and name of the element type of a tensor."""
        if kind in HALF_BYTES:
            return (count + 1) // 2, HALF_BYTES[kind]
        if kind not in ELEMENT_SIZES:
            raise self.broken(f"weights {name!r} have the unknown type {kind}")
        dtype, size = ELEMENT_SIZES[kind]
        return count * size, dtype

    def entry(self, value: Any) -> tuple[str, str]:
        """Key and value of a StringStringEntryProto."""
        fields = {number: self.text(part) for number, part in self.message(value)}
        return fields.get(1, ""), fields.get(2, "")

    def packed(self, value: Any, limit: int) -> list[int]:
        """Integers of a packed list; if it has more than `limit`, only the first `limit + 1`."""
        at, end = self.span(value)
        integers: list[int] = []
        while at < end and len(integers) <= limit:
            number, at = self.varint(at, end)
            integers.append(number)
        return integers

    def message(self, value: Any) -> Iterator[tuple[int, Any]]:
        return self.fields(*self.span(value))

    def fields(self, at: int, end: int) -> Iterator[tuple[int, Any]]:
        """Number and value of each field: an integer, or the begin and end of its bytes."""
        while at < end:
            key, at = self.varint(at, end)
            number, wire = key >> 3, key & 7
            if wire == VARINT:
                value, at = self.varint(at, end)
                yield number, value
            elif wire == BYTES:
                length, at = self.varint(at, end)
                if length > end - at:
                    raise self.broken("a message is truncated")
                yield number, (at, at + length)
                at += length
            elif wire in (LONG, SHORT):
                size = 8 if wire == LONG else 4
                if size > end - at:
                    raise self.broken("a number is truncated")
                yield number, (at, at + size)
                at += size
            else:
                raise self.broken(f"a field of wire type {wire}")

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """An integer, and the position after it."""
        number = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            at += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number, at
            shift += 7
        raise self.broken("a number is truncated")

    def float32(self, value: Any) -> float:
        at, end = self.span(value)
        if end - at != 4:
            raise self.broken("bytes in place of a number")
        number: float = struct.unpack("<f", self.data[at:end])[0]
        return number

    def floats(self, value: Any) -> list[float]:
        at, end = self.span(value)
        if (end - at) % 4 or end - at > 4 * MAX_ATTRIBUTE_VALUES:
            raise self.broken("a list of numbers is truncated or too long")
        return list(struct.unpack(f"<{(end - at) // 4}f", self.data[at:end]))

    def short(self, value: Any) -> bytes:
        at, end = self.span(value)
        if end - at > MAX_NAME_LENGTH:
            raise self.broken(f"a string of {end - at:,} bytes")
        return bytes(self.data[at:end])

    def span(self, value: Any) -> tuple[int, int]:
        if isinstance(value, int):
            raise self.broken("a number in place of bytes")
        at, end = value
        return at, end

    def integer(self, value: Any) -> int:
        if not isinstance(value, int):
            raise self.broken("bytes in place of a number")
        return value

    def text(self, value: Any) -> str:
        at, end = self.span(value)
        if end - at > MAX_NAME_LENGTH:
            raise self.broken(f"a name of {end - at:,} bytes")
        try:
            return self.data[at:end].decode()
        except UnicodeDecodeError:
            raise self.broken("a name is not UTF-8") from None

    def broken(self, problem: str) -> BundleError:
        return BundleError(f"{self.path} is a broken ONNX file: {problem}; copy or export it again")
