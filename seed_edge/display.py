"""Strings of unknown origin as they are shown: the one place where they are escaped for a terminal, TSV or
JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_SHOWN = 40
"""Maximum number of characters that `shown` prints of a value."""
ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
SPACES = "\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""Spaces of writing systems, which `str.isprintable` does not count as printable."""
UNSAFE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that `json.dumps` does not escape, and that control a terminal or are not valid in UTF-8."""


def printable(text: str) -> str:
    r"""Text in one line and without anything a terminal obeys: control and formatting characters become
    escapes.

    A byte of a file name that is not UTF-8 is shown as `\xff`. What is printable stays as it is.
    """
    return "".join(letter if letter.isprintable() or letter in SPACES else _escape(letter) for letter in text)


def _escape(letter: str) -> str:
    code = ord(letter)
    if letter in ESCAPES:
        return ESCAPES[letter]
    if 0xDC80 <= code <= 0xDCFF:  # a byte, by "surrogateescape"
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shown(value: Any) -> str:
    """A value as messages show it: printable, in one line, and cut after `MAX_SHOWN` characters; strings are
    quoted.
    """
    text = printable(str(value) if isinstance(value, str) else repr(value))
    text = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
    return repr(text) if isinstance(value, str) else text


def json_line(value: Any) -> str:
    """A JSON value in one line: valid UTF-8 whatever strings it holds, and read back exactly as it was.

    Raises:
        ValueError: it holds NaN or an infinity, which are not JSON.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
