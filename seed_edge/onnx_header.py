"""Reads and checks the structure of an ONNX file before native code does. Weights are skipped.

An ONNX file is one protocol buffer message (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; the wire
format: https://protobuf.dev/programming-guides/encoding). Field numbers here are those of that file.
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
"""Names of the domain of standard operators."""
RUNTIME_DOMAIN, PRODUCT_OF_BYTES = "com.microsoft", "MatMulNBits"
"""The one operator besides that bundles may use; ONNX Runtime brings it itself."""
ELEMENT_SIZES = {
    1: ("float32", 4), 2: ("uint8", 1), 3: ("int8", 1), 4: ("uint16", 2), 5: ("int16", 2),
    6: ("int32", 4), 7: ("int64", 8), 9: ("bool", 1), 10: ("float16", 2), 11: ("float64", 8),
    12: ("uint32", 4), 13: ("uint64", 8), 16: ("bfloat16", 2),
}  # fmt: skip
"""TensorProto.DataType: name, bytes of an element."""
HALF_BYTES = {21: "uint4", 22: "int4"}
EXTERNAL = 1
"""TensorProto.DataLocation: the weights lie in another file."""
VARINT, LONG, BYTES, SHORT = 0, 1, 2, 5
"""Wire types."""
FLOAT, INT, STRING, FLOATS, INTS = 1, 2, 3, 6, 7
"""AttributeProto.AttributeType: those whose values are read."""
KEPT_BYTES = 1 << 10
"""Maximum bytes of weights that are kept: shapes and scales that determine the sizes of other tensors."""
MAX_ATTRIBUTE_VALUES = 64
MAX_LINKS = 1_000_000
"""Names of inputs and outputs of operators, all together."""


@dataclass(frozen=True)
class OnnxTensor:
    """A weight tensor of a graph."""

    name: str
    shape: tuple[int, ...]
    kind: str
    size: int
    """Bytes."""
    location: str | None = None
    """Name of the file beside the graph that holds them; None where the graph does itself."""
    offset: int = 0
    """In that file."""
    stored: bool = True
    """Whether the graph holds them as raw bytes, not as a list of numbers."""
    content: bytes | None = None
    """Little-endian values, if they are at most `KEPT_BYTES`."""


@dataclass(frozen=True)
class OnnxNode:
    """One operator of a graph."""

    operator: str
    """`MatMul`, or `domain::operator` for another domain than the standard one."""
    inputs: tuple[str, ...]
    """Names; an input that is left out is an empty one."""
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    """Numbers, bytes, lists of numbers; None for an attribute of another kind."""


@dataclass
class OnnxHeader:
    """Structure of an ONNX file."""

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    """Version by domain."""
    operators: Counter[str] = field(default_factory=Counter)
    """How often each is used; those of other domains than the standard one as `domain::operator`."""
    inputs: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    """Shapes; an axis that is not fixed is a name."""
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
            BundleError: this is no ONNX file, it is cut off, or it contradicts itself.
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

    def refuse_what_bundles_never_hold(self, path: Path) -> None:
        """Refuse custom operators, functions, control flow, and weights anywhere but in the one file beside
        the graph.

        Raises:
            BundleError: there is such a thing; the first is named.
        """
        own = f"{RUNTIME_DOMAIN}::{PRODUCT_OF_BYTES}"
        foreign = sorted(name for name in self.operators if "::" in name and name != own)
        foreign += sorted(domain for domain in self.opsets if domain not in (*STANDARD, RUNTIME_DOMAIN))
        if foreign:
            raise BundleError(f"{path} uses {foreign[0]}, which no bundle does; export it again")
        if self.functions or self.subgraphs:
            raise BundleError(f"{path} holds graphs within its graph; those of bundles are flat")
        beside = path.with_name(path.name + ".data")
        for tensor in self.tensors.values():
            if tensor.location is None:
                continue
            if tensor.location != beside.name:
                raise BundleError(
                    f"{path}: weights {tensor.name!r} lie in {tensor.location!r}, not in {beside.name}"
                )
            if (
                not beside.is_file()
                or beside.is_symlink()
                or tensor.offset + tensor.size > beside.stat().st_size
            ):
                raise BundleError(
                    f"{path}: weights {tensor.name!r} lie outside {beside.name}; copy or export it again"
                )


def signed(number: int) -> int:
    """The signed value of a 64-bit integer in two's complement; the wire format is unsigned."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


class _Reader:
    """Reads messages; `data` is the whole file."""

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
                for inner, said in self.message(value):
                    domain, version = (
                        (self.text(said), version) if inner == 1 else (domain, self.integer(said))
                    )
                header.opsets[domain] = version
            elif number == 7:
                graphs += 1
                self.graph(value)
            elif number == 25:
                header.functions += 1
        if graphs != 1 or not header.ir_version or not header.opsets:
            raise BundleError(
                f"{self.path} is no ONNX file (it has no graph, or says no version); export again"
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
                name, said = self.attribute(part)
                if name in attributes:
                    raise self.broken(f"an attribute {name!r} stands there twice")
                attributes[name] = said
        operator = kind if domain in STANDARD else f"{domain}::{kind}"
        self.header.nodes.append(OnnxNode(operator, tuple(names[0]), tuple(names[1]), attributes))
        self.header.operators[operator] += 1
        if len(self.header.nodes) > MAX_NODES or self.links > MAX_LINKS:
            raise self.broken(f"over {MAX_NODES:,} operators, or {MAX_LINKS:,} names between them")

    def attribute(self, value: Any) -> tuple[str, Any]:
        """Name and value; None for a type of value that is not read."""
        name, kind, found = "", 0, dict[int, Any]()
        lists: dict[int, list[Any]] = {7: [], 8: []}
        for number, part in self.message(value):
            if number in (6, 11):
                self.header.subgraphs += 1
            elif number == 5:
                self.tensor(part)
            elif number in (10, 22, 23):
                raise self.broken("an attribute of several tensors, or of sparse ones")
            elif number == 1:
                name = self.text(part)
            elif number == 20:
                kind = self.integer(part)
            elif number == 2:
                found[FLOAT] = self.float32(part)
            elif number == 3:
                found[INT] = signed(self.integer(part))
            elif number == 4:
                found[STRING] = self.short(part)
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
        found |= {FLOATS: lists[7], INTS: lists[8]}
        return name, found.get(kind)

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
                raise self.broken("an input or output that is no tensor")
            for inner, part in self.message(tensor):
                if inner == 1:
                    kind = self.integer(part)
                elif inner == 2:
                    shape = [self.dimension(dimension) for axis, dimension in self.message(part) if axis == 1]
        return kind, shape

    def dimension(self, value: Any) -> int | str:
        found: int | str = "?"
        for number, part in self.message(value):
            found = self.integer(part) if number == 1 else self.text(part) if number == 2 else found
        return found

    def add_tensor(self, value: Any) -> None:
        tensor = self.tensor(value)
        if tensor.name in self.header.tensors:
            raise self.broken(f"weights {tensor.name!r} stand there twice")
        self.header.tensors[tensor.name] = tensor
        if len(self.header.tensors) > MAX_TENSORS:
            raise self.broken(f"over {MAX_TENSORS:,} weights")

    def tensor(self, value: Any) -> OnnxTensor:
        name, kind, place, outside = "", 0, 0, dict[str, str]()
        held: tuple[int, int] | None = None
        shape: list[int] = []
        for number, part in self.message(value):
            if number == 1:
                shape += [part] if isinstance(part, int) else self.packed(part, MAX_DIMENSIONS + 1)
            elif number == 2:
                kind = self.integer(part)
            elif number == 8:
                name = self.text(part)
            elif number == 9:
                held = self.span(part)
            elif number == 13:
                key, said = self.entry(part)
                outside[key] = said
            elif number == 14:
                place = self.integer(part)
        if (
            len(shape) > MAX_DIMENSIONS
            or any(n < 0 or n > MAX_VALUES for n in shape)
            or prod(shape) > MAX_VALUES
        ):
            raise self.broken(f"weights {name!r} have shape {tuple(shape)}")
        size, word = self.size_of(kind, prod(shape), name)
        if place == EXTERNAL:
            numbers = [outside.get(key, missing) for key, missing in (("offset", "0"), ("length", str(size)))]
            if not all(number.isascii() and number.isdecimal() and len(number) < 20 for number in numbers):
                raise self.broken(f"weights {name!r} lie at {outside}")
            offset, length = map(int, numbers)
            if length != size:
                raise self.broken(f"weights {name!r} take {size:,} bytes, {length:,} are announced")
            return OnnxTensor(name, tuple(shape), word, size, outside.get("location", ""), offset)
        if held is not None and held[1] - held[0] != size:
            raise self.broken(f"weights {name!r} take {size:,} bytes, {held[1] - held[0]:,} are there")
        content = bytes(self.data[held[0] : held[1]]) if held is not None and size <= KEPT_BYTES else None
        return OnnxTensor(
            name, tuple(shape), word, size, stored=held is not None or not size, content=content
        )

    def size_of(self, kind: int, count: int, name: str) -> tuple[int, str]:
        if kind in HALF_BYTES:
            return (count + 1) // 2, HALF_BYTES[kind]
        if kind not in ELEMENT_SIZES:
            raise self.broken(f"weights {name!r} are of type {kind}, which is unknown")
        word, size = ELEMENT_SIZES[kind]
        return count * size, word

    def entry(self, value: Any) -> tuple[str, str]:
        found = {number: self.text(part) for number, part in self.message(value)}
        return found.get(1, ""), found.get(2, "")

    def packed(self, value: Any, most: int) -> list[int]:
        """The first `most` integers of a list, and one more if the list is longer."""
        at, end = self.span(value)
        found: list[int] = []
        while at < end and len(found) <= most:
            number, at = self.varint(at, end)
            found.append(number)
        return found

    def message(self, value: Any) -> Iterator[tuple[int, Any]]:
        return self.fields(*self.span(value))

    def fields(self, at: int, end: int) -> Iterator[tuple[int, Any]]:
        """Number and value of each field: an integer, or where its bytes begin and end."""
        while at < end:
            key, at = self.varint(at, end)
            number, wire = key >> 3, key & 7
            if wire == VARINT:
                value, at = self.varint(at, end)
                yield number, value
            elif wire == BYTES:
                length, at = self.varint(at, end)
                if length > end - at:
                    raise self.broken("it ends within a message")
                yield number, (at, at + length)
                at += length
            elif wire in (LONG, SHORT):
                size = 8 if wire == LONG else 4
                if size > end - at:
                    raise self.broken("it ends within a number")
                yield number, (at, at + size)
                at += size
            else:
                raise self.broken(f"a field of kind {wire}")

    def varint(self, at: int, end: int) -> tuple[int, int]:
        found = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            at += 1
            found |= (byte & 127) << shift
            if byte < 128:
                return found, at
            shift += 7
        raise self.broken("it ends within a number")

    def float32(self, value: Any) -> float:
        at, end = self.span(value)
        if end - at != 4:
            raise self.broken("bytes stand where a number belongs")
        number: float = struct.unpack("<f", self.data[at:end])[0]
        return number

    def floats(self, value: Any) -> list[float]:
        at, end = self.span(value)
        if (end - at) % 4 or end - at > 4 * MAX_ATTRIBUTE_VALUES:
            raise self.broken("a list of numbers is cut off or too long")
        return list(struct.unpack(f"<{(end - at) // 4}f", self.data[at:end]))

    def short(self, value: Any) -> bytes:
        at, end = self.span(value)
        if end - at > MAX_NAME_LENGTH:
            raise self.broken(f"a text of {end - at:,} bytes")
        return bytes(self.data[at:end])

    def span(self, value: Any) -> tuple[int, int]:
        if isinstance(value, int):
            raise self.broken("a number stands where bytes belong")
        at, end = value
        return at, end

    def integer(self, value: Any) -> int:
        if not isinstance(value, int):
            raise self.broken("bytes stand where a number belongs")
        return value

    def text(self, value: Any) -> str:
        at, end = self.span(value)
        if end - at > MAX_NAME_LENGTH:
            raise self.broken(f"a name of {end - at:,} bytes")
        try:
            return self.data[at:end].decode()
        except UnicodeDecodeError:
            raise self.broken("a name is not UTF-8") from None

    def broken(self, why: str) -> BundleError:
        return BundleError(f"{self.path} is a broken ONNX file: {why}; copy or export it again")
