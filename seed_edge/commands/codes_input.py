"""Inputs of commands besides images: codes, latents, prompts and file names; from a file, or from stdin for
`-`.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from seed_edge.display import printable
from seed_edge.errors import CodesError, ImageError, PromptError, SeedEdgeError
from seed_edge.inputs import kind_of, open_regular, parse_json, read_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STDIN = "-"
CODES_FILE_LIMIT = 1 << 20
PROMPTS_FILE_LIMIT = 16 << 20
MAX_PROMPT = 1 << 16
"""Maximum size of a prompt in bytes."""
LATENTS_FILE_LIMIT = 64 << 20
NPY = re.compile(
    rb"\x93NUMPY(?:\x01\x00[\x00-\xff]{2}|\x02\x00[\x00-\xff]{4})"
    rb"\{'descr': '(?P<type>[<>]f[248])', 'fortran_order': (?P<fortran>True|False), 'shape': "
    rb"\((?P<shape>[0-9]{1,6}(?:, [0-9]{1,6}){3}),?\), \} *\n"
)
"""Beginning of a .npy file of real numbers in four dimensions, as `numpy.save` writes it."""
MAX_HEADER = 512
INTEGER = re.compile(r"-?[0-9]{1,18}")


def read_codes(name: str) -> str:
    """Text of a codes file, or of stdin for `-`.

    Raises:
        CodesError: it cannot be read, is no text, or is far too large.
    """
    data = _content(name, CODES_FILE_LIMIT, CodesError)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CodesError(f"{printable(name)} is no text; give a file that `seed-edge encode` wrote") from None


def parse_codes(text: str, name: str) -> list[int]:
    """Codes of one image: JSON with `codes`, a JSON list, or numbers with spaces between.

    Raises:
        CodesError: none of these.
    """
    try:
        value = parse_json(text, name, CodesError) if text.lstrip()[:1] in ("{", "[") else _numbers(text)
    except CodesError as error:
        raise CodesError(f"{printable(name)} holds no codes ({error}); {ADVICE}") from error
    value = value.get("codes") if isinstance(value, dict) else value
    if not isinstance(value, list) or not value or not all(type(code) is int for code in value):
        raise CodesError(f"{printable(name)} holds no codes; {ADVICE}")
    return value


ADVICE = "give a file that `seed-edge encode --json` wrote, of one image"


def _numbers(text: str) -> list[int] | None:
    """Integers with white space between; None where a word is no integer of at most 64 bits."""
    words = text.split()
    return [int(word) for word in words] if all(map(INTEGER.fullmatch, words)) else None


def parse_many(text: str, name: str) -> list[list[int]]:
    """Codes of one or several images.

    Several images are JSON lines, as `encode --json` writes them; one image is anything that `parse_codes`
    reads.

    Raises:
        CodesError: `text` holds no codes, or one of its lines does not.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or not all(line.startswith("{") and line.rstrip().endswith("}") for line in lines):
        return [parse_codes(text, name)]
    return [parse_codes(line, f"{name}: line {number}") for number, line in enumerate(lines, 1)]


def paths_of(name: str) -> list[str]:
    """File names in a text file, one per line, or on stdin for `-`; empty lines are skipped.

    Names are bytes of the file system, as the lines of `find` and `ls`.

    Raises:
        ImageError: the file cannot be read, or holds no name.
    """
    data = _content(name, PROMPTS_FILE_LIMIT, ImageError)
    found = [os.fsdecode(line) for line in data.splitlines() if line.strip()]
    if not found:
        raise ImageError(f"{printable(name)} holds no file names; write one on each line")
    return found


def lines_of(name: str) -> Iterator[str]:
    """Lines of a UTF-8 text file, or of stdin for `-`; empty lines are skipped.

    Raises:
        PromptError: it cannot be read, holds nothing, or a line is no prompt.
    """
    data = _content(name, PROMPTS_FILE_LIMIT, PromptError)
    found = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        where = f"{printable(name)}: line {number}"
        if len(line) > MAX_PROMPT:
            raise PromptError(f"{where} has {len(line):,} bytes; a prompt has at most {MAX_PROMPT:,}")
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise PromptError(
                f"{where} cannot be read as text (byte {error.start + 1} is not UTF-8)"
            ) from None
        if "\0" in text:
            raise PromptError(f"{where} holds a NUL character; write the prompts as plain UTF-8 text")
        found.append(text)
    if not any(found):
        raise PromptError(f"{printable(name)} holds no prompts; write one on each line")
    yield from filter(None, found)


def read_latents(path: Path) -> NDArray[np.float32]:
    """Latents (1, channels, height, width) that `kept_latents` kept. Type and size are known before an array
    is made.

    Raises:
        CodesError: the file is missing, or holds anything but one array of finite real numbers of such a
        shape.
    """
    import numpy as np

    name = printable(str(path))
    with open_regular(path, CodesError) as file:
        header = NPY.match(_read(file, MAX_HEADER, name))
        if header is None:
            raise CodesError(
                f"{name} cannot be read as latents (it is no array of real numbers in four dimensions); "
                f"{KEPT}"
            )
        kind, shape = (
            np.dtype(header["type"].decode()),
            tuple(int(side) for side in header["shape"].split(b", ")),
        )
        size = kind.itemsize * math.prod(shape)
        if shape[0] != 1 or not 0 < size <= LATENTS_FILE_LIMIT:
            raise CodesError(
                f"{name} cannot be read as latents (its shape is {shape}, not that of one picture); {KEPT}"
            )
        file.seek(header.end())
        data = _read(file, size + 1, name)
    if len(data) != size:
        raise CodesError(f"{name} cannot be read as latents (its size is not that of {shape}); {KEPT}")
    values = np.frombuffer(data, kind).reshape(shape, order="F" if header["fortran"] == b"True" else "C")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(values).all():
        raise CodesError(f"{name} cannot be read as latents (they are not finite); {KEPT}")
    return values


KEPT = "give a file that `draw` kept"


def _read(file: IO[bytes], size: int, name: str) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise CodesError(f"{name} cannot be read ({error.strerror})") from error


def _file(path: Path, limit: int, error: type[SeedEdgeError]) -> bytes:
    name = printable(str(path))
    try:
        size = path.stat().st_size
    except OSError as reason:
        raise error(f"{name} cannot be read ({reason.strerror})") from reason
    if kind := kind_of(path):
        raise error(f"{name} cannot be read ({kind}, not a regular file)")
    if size > limit:
        raise error(f"{name} is over {limit:,} bytes, the limit for an input of this kind")
    return read_bytes(path, limit, error)


def _content(name: str, limit: int, error: type[SeedEdgeError]) -> bytes:
    """Content of a regular file, or of stdin for `-`; at most `limit` bytes."""
    if name != STDIN:
        return _file(Path(name), limit, error)
    stream: Any = sys.stdin
    if stream is None:
        raise error("stdin is closed; give a file")
    try:
        data: bytes = stream.buffer.read(limit + 1)
    except OSError as reason:
        raise error(f"stdin cannot be read ({reason.strerror})") from reason
    if len(data) > limit:
        raise error(f"stdin holds over {limit:,} bytes, the limit for an input of this kind")
    return data
