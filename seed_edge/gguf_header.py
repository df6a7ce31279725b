"""Reads the header of a GGUF file: metadata and tensor positions. Tensor data is not read.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). Every
count and length is checked against limits and the size of the file before it is used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

from seed_edge.errors import BundleError, BundleNotFoundError, SeedEdgeError
from seed_edge.inputs import open_regular

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_VALUES, MAX_TENSORS, MAX_DIMENSIONS = 4096, 65536, 4
MAX_STRING, MAX_KEY, MAX_NAME_LENGTH = 16 << 20, 65535, 63
MAX_ARRAY = 4 << 20
MAX_KEPT_ITEMS = 16
"""Maximum number of array items that are read; the others are skipped."""

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""`struct` format of each scalar type, by type number."""
STRING, ARRAY = 8, 9

TENSOR_TYPES = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8)},
    **{24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    **{
        2: ("Q4_0", 32, 18),
        3: ("Q4_1", 32, 20),
        6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24),
        8: ("Q8_0", 32, 34),
    },
    **{
        10: ("Q2_K", 256, 84),
        11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176),
        14: ("Q6_K", 256, 210),
    },
    **{16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50)},
    **{20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136)},
    **{29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17)},
}
"""Name, weights per block and bytes per block of each tensor type, by type number."""


@dataclass(frozen=True)
class Items:
    """The length and the first items of an array."""

    count: int
    first: tuple[Any, ...]
    """At most `MAX_KEPT_ITEMS` items, or all if the whole array was requested."""


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape, type and position of a tensor."""

    name: str
    shape: tuple[int, ...]
    """Fastest axis first."""
    kind: str
    """Type, such as `Q8_0`."""
    offset: int
    """Bytes from the beginning of the file."""
    size: int
    """Size in bytes."""


@dataclass(frozen=True)
class GgufHeader:
    """Header of a GGUF file."""

    version: int
    values: dict[str, Any]
    """Metadata: numbers, strings and `Items`, by key."""
    tensors: dict[str, TensorInfo]

    @classmethod
    def read(cls, path: Path, whole: frozenset[str] = frozenset()) -> GgufHeader:
        """Read and check a header.

        Args:
            whole: keys of arrays that are read completely.

        Raises:
            BundleError: the file is not a GGUF file, is truncated, or is inconsistent.
        """
        if not path.exists():
            raise BundleNotFoundError(f"{path} cannot be read (no such file)")
        try:
            with open_regular(path, BundleError) as file:
                return _Reader(file, path, whole).header()
        except SeedEdgeError:
            raise
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror})") from error

    def number(self, key: str) -> int:
        """Value of an integer key of the architecture, such as `block_count` for `llama.block_count`.

        Raises:
            BundleError: the key is missing.
        """
        full_key = f"{self.values.get('general.architecture')}.{key}"
        value = self.values.get(full_key)
        if type(value) is not int or value < 0:
            raise BundleError(f"a GGUF file has no key {full_key}; export again")
        return value

    def kv_cache_bytes_per_token(self) -> int:
        """Size in bytes of the keys and values of one token, in fp16."""
        heads = self.number("attention.head_count")
        width = self.number("embedding_length") // max(heads, 1) * self.number("attention.head_count_kv")
        return 2 * 2 * self.number("block_count") * width


class _Reader:
    def __init__(self, file: IO[bytes], path: Path, whole: frozenset[str]) -> None:
        self.file, self.path, self.whole = file, path, whole
        self.size = file.seek(0, 2)
        file.seek(0)

    def header(self) -> GgufHeader:
        if self.file.read(4) != MAGIC:
            raise BundleError(f"{self.path} is not a GGUF file (it does not begin with {MAGIC.decode()})")
        version = self.scalar("I")
        if version not in VERSIONS:
            raise self.broken(f"version {version}; supported are {' and '.join(map(str, VERSIONS))}")
        tensor_count, value_count = self.scalar("Q"), self.scalar("Q")
        if tensor_count > MAX_TENSORS or value_count > MAX_VALUES:
            raise self.broken(f"its header declares {tensor_count:,} tensors and {value_count:,} values")
        values: dict[str, Any] = {}
        for _ in range(value_count):
            key = self.string(MAX_KEY)
            if key in values:
                raise self.broken(f"duplicate key {key}")
            values[key] = self.value(self.scalar("I"), MAX_ARRAY if key in self.whole else MAX_KEPT_ITEMS)
        declared = [self.tensor() for _ in range(tensor_count)]
        return GgufHeader(version, values, self.placed(declared, values.get("general.alignment", 32)))

    def tensor(self) -> TensorInfo:
        name = self.string(MAX_NAME_LENGTH)
        dimensions = self.scalar("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.broken(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.scalar("Q") for _ in range(dimensions))
        number, offset = self.scalar("I"), self.scalar("Q")
        if number not in TENSOR_TYPES:
            raise self.broken(f"tensor {name!r} has the unknown type {number}")
        kind, block, size = TENSOR_TYPES[number]
        if min(shape) < 1 or prod(shape) > 1 << 48 or shape[0] % block:
            raise self.broken(f"tensor {name!r} of type {kind} has shape {shape}")
        return TensorInfo(name, shape, kind, offset, prod(shape) // block * size)

    def placed(self, declared: list[TensorInfo], alignment: Any) -> dict[str, TensorInfo]:
        """The tensors with absolute offsets, by name."""
        if type(alignment) is not int or not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise self.broken(f"general.alignment is {alignment!r}")
        start = -(-self.file.tell() // alignment) * alignment
        tensors, end = {}, start
        for info in sorted(declared, key=lambda info: info.offset):
            offset = start + info.offset
            if info.offset % alignment or offset < end or offset + info.size > self.size:
                raise self.broken(f"tensor {info.name!r} lies outside the file or overlaps another")
            if info.name in tensors:
                raise self.broken(f"duplicate tensor {info.name!r}")
            tensors[info.name] = TensorInfo(info.name, info.shape, info.kind, offset, info.size)
            end = offset + info.size
        return tensors

    def value(self, kind: int, max_items: int) -> Any:
        if kind == STRING:
            return self.string(MAX_STRING)
        if kind == ARRAY:
            return self.array(max_items)
        if kind not in SCALARS:
            raise self.broken(f"a value has the unknown type {kind}")
        return self.scalar(SCALARS[kind])

    def array(self, max_items: int) -> Items:
        kind, count = self.scalar("I"), self.scalar("Q")
        if count > MAX_ARRAY or not (kind == STRING or kind in SCALARS):
            raise self.broken(f"an array of {count:,} values of type {kind}")
        if kind != STRING:
            size, number = struct.calcsize("<" + SCALARS[kind]), min(count, max_items)
            if number * size > self.size:
                raise self.broken(f"an array of {count:,} values of type {kind}")
            first = struct.unpack(f"<{number}{SCALARS[kind]}", self.bytes(number * size))
            self.skip((count - number) * size)
            return Items(count, first)
        strings = tuple(self.string(MAX_STRING) for _ in range(min(count, max_items)))
        for _ in range(count - len(strings)):
            self.skip(self.length(MAX_STRING))
        return Items(count, strings)

    def string(self, max_bytes: int) -> str:
        try:
            return self.bytes(self.length(max_bytes)).decode()
        except UnicodeDecodeError:
            raise self.broken("a string is not UTF-8") from None

    def length(self, max_bytes: int) -> int:
        length: int = self.scalar("Q")
        if length > max_bytes:
            raise self.broken(f"a string of {length:,} bytes")
        return length

    def scalar(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.bytes(struct.calcsize("<" + kind)))[0]

    def bytes(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise self.broken("its header is truncated")
        return data

    def skip(self, count: int) -> None:
        if self.file.seek(count, 1) > self.size:
            raise self.broken("its header is truncated")

    def broken(self, problem: str) -> BundleError:
        return BundleError(f"{self.path} is a broken GGUF file: {problem}; copy or export it again")
