"""Reads input files: only regular files, up to a size limit; JSON is parsed strictly."""

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
"""Bound of the magnitude of integers in JSON files."""
MAX_DEPTH = 64
"""Maximum nesting of lists and objects in a JSON file."""


def open_regular(path: Path, error: type[SeedEdgeError] = SeedEdgeError) -> IO[bytes]:
    """Open a regular file for reading; pipes, sockets, devices and folders are refused without blocking.

    Args:
        error: class of the error that is raised.

    Raises:
        SeedEdgeError: the file does not exist, is not regular, or cannot be read.
    """
    name = printable(str(path))
    try:
        # O_NONBLOCK: opening a pipe for reading would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise NOT_FOUND.get(error, error)(f"{name}: no such file") from None
    except ValueError:  # NUL in the name
        raise error(f"{name}: no such file (its name contains a NUL character)") from None
    except OSError as reason:
        kind = special_file_type(path)
        problem = f"{kind}, not a regular file" if kind else f"cannot be read ({reason.strerror})"
        raise error(f"{name}: {problem}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise error(f"{name}: {_kind(mode)}, not a regular file")
    return os.fdopen(descriptor, "rb")


def special_file_type(path: Path) -> str:
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
        SeedEdgeError: see `open_regular`; or the file is larger.
    """
    with open_regular(path, error) as file:
        try:
            data = file.read(limit + 1)
        except OSError as reason:
            raise error(f"{printable(str(path))}: cannot be read ({reason.strerror})") from reason
    if len(data) > limit:
        raise error(f"{printable(str(path))}: over {limit:,} bytes, the limit for this kind of file")
    return data


def read_text(path: Path, limit: int, error: type[SeedEdgeError] = SeedEdgeError) -> str:
    """Content of a UTF-8 file of at most `limit` bytes, without a byte order mark.

    Raises:
        SeedEdgeError: see `read_bytes`; or the file is not UTF-8.
    """
    try:
        return read_bytes(path, limit, error).decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{printable(str(path))}: not a UTF-8 text file (byte {reason.start})") from None


def read_json(path: Path, limit: int, error: type[SeedEdgeError] = SeedEdgeError) -> Any:
    """Value of a JSON file; see `parse_json`.

    Raises:
        SeedEdgeError: see `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, limit, error), str(path), error)


def parse_json(text: str, where: str, error: type[SeedEdgeError] = SeedEdgeError) -> Any:
    """Parse untrusted JSON.

    Stricter than `json.loads`: no NaN or infinity, no integer beyond 64 bits, no float beyond double
    precision, no duplicate key, and no nesting deeper than `MAX_DEPTH`.

    Args:
        where: name of the file or option, for messages.

    Raises:
        SeedEdgeError: the text is not JSON, or breaks one of these rules.
    """

    def fail(problem: str) -> NoReturn:
        raise error(f"{printable(where)}: not valid JSON ({problem})")

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
        return value if math.isfinite(value) else fail(f"{digits[:24]} is too large")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            fail("an object has a duplicate key")
        return result

    try:
        value = json.loads(
            text,
            parse_int=integer,
            parse_float=number,
            parse_constant=lambda constant: fail(f"{constant} is not a number"),
            object_pairs_hook=pairs,
        )
    except RecursionError:
        fail("nested too deeply")
    except SeedEdgeError:  # may also be a ValueError
        raise
    except ValueError as reason:
        fail(printable(str(reason)))
    if depth_over(value, MAX_DEPTH):
        fail("nested too deeply")
    return value


def depth_over(value: Any, limit: int) -> bool:
    """Whether lists and objects are nested deeper than `limit`."""
    level: list[Any] = [value]
    for _ in range(limit):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return True


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
