"""GGUF files taken apart and put together, so that tests can change any part of one."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

KINDS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass
class File:
    """A GGUF file in parts."""

    version: int
    values: list[tuple[bytes, int, Any]]
    """Key, type and value; of an array, its type and its items."""
    tensors: list[tuple[bytes, list[int], int, int]]
    """Name, shape, type and offset."""
    data: bytes

    @classmethod
    def parse(cls, raw: bytes) -> File:
        """A valid file."""
        at = 4

        def scalar(kind: str) -> Any:
            nonlocal at
            (value,) = struct.unpack_from("<" + kind, raw, at)
            at += struct.calcsize("<" + kind)
            return value

        def text() -> bytes:
            nonlocal at
            length = scalar("Q")
            at += length
            return raw[at - length : at]

        def value(kind: int) -> Any:
            if kind == STRING:
                return text()
            if kind == ARRAY:
                inner, count = scalar("I"), scalar("Q")
                return inner, [value(inner) for _ in range(count)]
            return scalar(KINDS[kind])

        version, tensors, values = scalar("I"), scalar("Q"), scalar("Q")
        said = [(text(), kind := scalar("I"), value(kind)) for _ in range(values)]
        infos = []
        for _ in range(tensors):
            name, rank = text(), scalar("I")
            infos.append((name, [scalar("Q") for _ in range(rank)], scalar("I"), scalar("Q")))
        return cls(version, said, infos, raw[-(-at // 32) * 32 :])

    def bytes(self) -> bytes:
        """The file."""
        out = bytearray(
            b"GGUF" + struct.pack("<IQQ", self.version & 0xFFFFFFFF, len(self.tensors), len(self.values))
        )
        for key, kind, value in self.values:
            out += _text(key) + struct.pack("<I", kind) + _value(kind, value)
        for name, shape, kind, offset in self.tensors:
            sizes = b"".join(_number("Q", n) for n in shape)
            out += (
                _text(name)
                + struct.pack("<I", len(shape))
                + sizes
                + _number("I", kind)
                + _number("Q", offset)
            )
        return bytes(out) + bytes(-len(out) % 32) + self.data


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _number(kind: str, value: Any) -> bytes:
    """A number of a type, whatever was to be one."""
    value = value if isinstance(value, int | float) else 0
    if kind in "fd":
        return struct.pack("<" + kind, max(-3e38, min(3e38, value)) if abs(value) < float("inf") else value)
    value = value if abs(value) < float("inf") else 0
    size = struct.calcsize("<" + kind)
    return (int(value) & (256**size - 1)).to_bytes(size, "little")


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _text(value if isinstance(value, bytes) else b"")
    if kind == ARRAY:
        inner, items = value if isinstance(value, tuple) else (4, [])
        return struct.pack("<IQ", inner, len(items)) + b"".join(_value(inner, item) for item in items)
    return _number(KINDS[kind], value)
