"""Inputs of commands other than images: codes, latents, prompts and file names, from a file or from stdin."""

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
from seed_edge.inputs import open_regular, parse_json, read_bytes, special_file_type

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
"""Header of a .npy file that contains a four-dimensional array of real numbers, as `numpy.save` writes it."""
MAX_HEADER = 512
"""Maximum size of that header in bytes."""
INTEGER = re.compile(r"-?[0-9]{1,18}")


def read_codes(name: str) -> str:
    """Return the text of a codes file, or of stdin for `-`.

    Raises:
        CodesError: the file cannot be read, is not UTF-8 text, or exceeds `CODES_FILE_LIMIT` bytes.
    """
    data = _read_input(name, CODES_FILE_LIMIT, CodesError)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CodesError(
            f"{printable(name)} is not a text file; give a file that `seed-edge encode` wrote"
        ) from None


def parse_codes(text: str, name: str) -> list[int]:
    """Parse the codes of one image: a JSON object with `codes`, a JSON list, or integers separated by spaces.

    Args:
        name: file name for messages.

    Raises:
        CodesError: the text has another format.
    """
    try:
        value = parse_json(text, name, CodesError) if text.lstrip()[:1] in ("{", "[") else _integers(text)
    except CodesError as error:
        raise CodesError(f"{printable(name)} holds no codes ({error}); {CODES_ADVICE}") from error
    value = value.get("codes") if isinstance(value, dict) else value
    if not isinstance(value, list) or not value or not all(type(code) is int for code in value):
        raise CodesError(f"{printable(name)} holds no codes; {CODES_ADVICE}")
    return value


CODES_ADVICE = "give a file that `seed-edge encode --json` wrote for one image"


def _integers(text: str) -> list[int] | None:
    """Parse integers separated by white space; None if a word is not an integer of at most 18 digits."""
    words = text.split()
    return [int(word) for word in words] if all(map(INTEGER.fullmatch, words)) else None


def parse_code_lists(text: str, name: str) -> list[list[int]]:
    """Parse the codes of one or several images.

    Several images are JSON lines, as `encode --json` writes them; for one image see `parse_codes`.

    Args:
        name: file name for messages.

    Raises:
        CodesError: `text`, or one of several lines, holds no codes.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or not all(line.startswith("{") and line.rstrip().endswith("}") for line in lines):
        return [parse_codes(text, name)]
    return [parse_codes(line, f"{name}: line {number}") for number, line in enumerate(lines, 1)]


def read_file_names(name: str) -> list[str]:
    """Read file names, one per line, from a file, or from stdin for `-`; empty lines are skipped.

    Names are in the encoding of the file system, as `find` and `ls` print them.

    Raises:
        ImageError: the file cannot be read, or holds no names.
    """
    data = _read_input(name, PROMPTS_FILE_LIMIT, ImageError)
    names = [os.fsdecode(line) for line in data.splitlines() if line.strip()]
    if not names:
        raise ImageError(f"{printable(name)} holds no file names; write one per line")
    return names


def read_prompts(name: str) -> Iterator[str]:
    """Read prompts, one per line of UTF-8 text, from a file, or from stdin for `-`; empty lines are skipped.

    Raises:
        PromptError: the file cannot be read, holds no prompts, or a line is not a valid prompt.
    """
    data = _read_input(name, PROMPTS_FILE_LIMIT, PromptError)
    prompts = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        where = f"{printable(name)}: line {number}"
        if len(line) > MAX_PROMPT:
            raise PromptError(f"{where} has {len(line):,} bytes; a prompt may have at most {MAX_PROMPT:,}")
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise PromptError(
                f"{where} cannot be read as text (byte {error.start + 1} is not UTF-8)"
            ) from None
        if "\0" in text:
            raise PromptError(f"{where} holds a NUL character; write the prompts as plain UTF-8 text")
        prompts.append(text)
    if not any(prompts):
        raise PromptError(f"{printable(name)} holds no prompts; write one per line")
    yield from filter(None, prompts)


def read_latents(path: Path) -> NDArray[np.float32]:
    """Read the latents, (1, channels, height, width) in fp32, from a file that `backup_latents` wrote.

    The header is checked before an array is allocated.

    Raises:
        CodesError: the file is missing, or is not a .npy file with one array of finite real numbers of such a
            shape and at most `LATENTS_FILE_LIMIT` bytes.
    """
    import numpy as np

    name = printable(str(path))
    with open_regular(path, CodesError) as file:
        header = NPY.match(_read(file, MAX_HEADER, name))
        if header is None:
            raise CodesError(
                f"{name} cannot be read as latents (it is not a four-dimensional array of real numbers); "
                f"{LATENTS_ADVICE}"
            )
        dtype, shape = (
            np.dtype(header["type"].decode()),
            tuple(int(side) for side in header["shape"].split(b", ")),
        )
        size = dtype.itemsize * math.prod(shape)
        if shape[0] != 1 or not 0 < size <= LATENTS_FILE_LIMIT:
            raise CodesError(
                f"{name} cannot be read as latents (its shape {shape} is not that of one image); "
                f"{LATENTS_ADVICE}"
            )
        file.seek(header.end())
        data = _read(file, size + 1, name)
    if len(data) != size:
        raise CodesError(
            f"{name} cannot be read as latents (its size does not match its shape {shape}); {LATENTS_ADVICE}"
        )
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if header["fortran"] == b"True" else "C")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(values).all():
        raise CodesError(f"{name} cannot be read as latents (they are not finite); {LATENTS_ADVICE}")
    return values


LATENTS_ADVICE = "give a file of latents that `draw` wrote"


def _read(file: IO[bytes], size: int, name: str) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise CodesError(f"{name} cannot be read ({error.strerror})") from error


def _read_file(path: Path, limit: int, error: type[SeedEdgeError]) -> bytes:
    name = printable(str(path))
    try:
        size = path.stat().st_size
    except OSError as reason:
        raise error(f"{name} cannot be read ({reason.strerror})") from reason
    if kind := special_file_type(path):
        raise error(f"{name} cannot be read ({kind}, not a regular file)")
    if size > limit:
        raise error(f"{name} is over {limit:,} bytes, the limit for an input of this kind")
    return read_bytes(path, limit, error)


def _read_input(name: str, limit: int, error: type[SeedEdgeError]) -> bytes:
    """Read a regular file, or stdin for `-`; at most `limit` bytes."""
    if name != STDIN:
        return _read_file(Path(name), limit, error)
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
