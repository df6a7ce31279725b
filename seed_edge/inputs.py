"""Input files: only regular files are opened, reading is limited, JSON is parsed strictly."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NoReturn

from seed_edge.display import printable
from seed_edge.errors import NOT_FOUND, SeedEdgeError

KINDS = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISDIR: "a folder",
}
MAX_INTEGER = 1 << 63
"""Integers of JSON files lie below it, in magnitude."""
MAX_DEPTH = 64
"""Maximum nesting of lists and objects in a JSON file."""


def open_regular(path: Path, error: type[SeedEdgeError] = SeedEdgeError) -> IO[bytes]:
    """Open a regular file for reading; pipes, sockets, devices and folders are refused without waiting for
    them.

    Args:
        error: class of what is raised.

    Raises:
        SeedEdgeError: no such file, not a regular one, or it may not be read.
    """
    name = printable(str(path))
    try:
        # O_NONBLOCK: opening a pipe for reading would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise NOT_FOUND.get(error, error)(f"{name}: no such file") from None
    except ValueError:  # a NUL in the name
        raise error(f"{name}: no such file (its name has a NUL character)") from None
    except OSError as reason:
        kind = kind_of(path)
        why = f"{kind}, not a regular file" if kind else f"cannot be read ({reason.strerror})"
        raise error(f"{name}: {why}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise error(f"{name}: {_kind(mode)}, not a regular file")
    return os.fdopen(descriptor, "rb")


def kind_of(path: Path) -> str:
    """Type of a path that exists and is not a regular file, such as `a named pipe`; otherwise an empty
    string.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) else _kind(mode)


def _kind(mode: int) -> str:
    return next((word for test, word in KINDS.items() if test(mode)), "a special file")


def read_bytes(path: Path, limit: int, error: type[SeedEdgeError] = SeedEdgeError) -> bytes:
    """Content of a regular file of at most `limit` bytes.

    Raises:
        SeedEdgeError: see `open_regular`; or it is larger.
    """
    with open_regular(path, error) as file:
        try:
            data = file.read(limit + 1)
        except OSError as reason:
            raise error(f"{printable(str(path))}: cannot be read ({reason.strerror})") from reason
    if len(data) > limit:
        raise error(f"{printable(str(path))}: over {limit:,} bytes, the limit for a file of this kind")
    return data


def read_text(path: Path, limit: int, error: type[SeedEdgeError] = SeedEdgeError) -> str:
    """Content of a UTF-8 file of at most `limit` bytes; a byte order mark at its beginning is left out.

    Raises:
        SeedEdgeError: see `read_bytes`; or it is not UTF-8.
    """
    try:
        return read_bytes(path, limit, error).decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{printable(str(path))}: not a text file in UTF-8 (byte {reason.start})") from None


def read_json(path: Path, limit: int, error: type[SeedEdgeError] = SeedEdgeError) -> Any:
    """Value of a JSON file; see `parse_json`.

    Raises:
        SeedEdgeError: see `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, limit, error), str(path), error)


def parse_json(text: str, where: str, error: type[SeedEdgeError] = SeedEdgeError) -> Any:
    """Parse untrusted JSON.

    Stricter than `json.loads`: no NaN or infinity, no number beyond 64 bits or a double's range, no key twice
    in an object, no nesting beyond `MAX_DEPTH`.

    Args:
        where: name of the file or option, for messages.

    Raises:
        SeedEdgeError: one of these, or not JSON.
    """

    def fail(why: str) -> NoReturn:
        raise error(f"{printable(where)}: not JSON that can be used ({why})")

    def integer(digits: str) -> int:
        if len(digits) > 20 or not -MAX_INTEGER <= int(digits) < MAX_INTEGER:
            fail(
                f"the number {digits[:24]}... is beyond 64 bits"
                if len(digits) > 24
                else f"{digits} is beyond 64 bits"
            )
        return int(digits)

    def number(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else fail(f"{digits[:24]} is beyond the range of a number")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            fail("a key stands twice in one object")
        return found

    try:
        value = json.loads(
            text,
            parse_int=integer,
            parse_float=number,
            parse_constant=lambda word: fail(f"{word} is no number"),
            object_pairs_hook=pairs,
        )
    except RecursionError:
        fail("it nests too deeply")
    except SeedEdgeError:  # which may be a ValueError too
        raise
    except ValueError as reason:
        fail(printable(str(reason)))
    if depth_over(value, MAX_DEPTH):
        fail("it nests too deeply")
    return value


def depth_over(value: Any, limit: int) -> bool:
    """Whether lists and objects nest deeper than `limit`."""
    layer: list[Any] = [value]
    for _ in range(limit):
        layer = [item for each in layer for item in _items(each)]
        if not layer:
            return False
    return True


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
