"""Escaping of untrusted strings for a terminal, TSV or JSON."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_SHOWN = 40
"""Maximum number of characters of a value in `shown`."""
ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
SPACES = "\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""Spaces that are shown, although `str.isprintable` is false for them."""
UNSAFE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that control a terminal or are invalid in UTF-8, and that `json.dumps` does not escape."""


def printable(text: str) -> str:
    r"""Return text as one line in which control and formatting characters are escaped.

    A byte of a file name that is not UTF-8 becomes `\xff`. Printable characters are not changed.
    """
    return "".join(char if char.isprintable() or char in SPACES else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if char in ESCAPES:
        return ESCAPES[char]
    if 0xDC80 <= code <= 0xDCFF:  # a byte that "surrogateescape" decoded
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shown(value: Any) -> str:
    """Return a value for messages, as one printable line of limited length; strings are quoted."""
    text = printable(str(value) if isinstance(value, str) else repr(value))
    text = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
    return repr(text) if isinstance(value, str) else text


def json_line(value: Any) -> str:
    """Return a value as one line of JSON that is valid UTF-8 and is parsed back to the same value.

    Raises:
        ValueError: it contains NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
