"""JSON files of checkpoints: every key is read with its type and range, and a message names the file and the
key.

Numbers are bounded before anything is built from them: a configuration of kilobytes must not ask for
gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seed_edge.display import printable, shown
from seed_edge.errors import CheckpointError, SeedEdgeError
from seed_edge.inputs import read_json

MAX_JSON_BYTES = 64 << 20
"""Maximum size of a JSON file of a checkpoint, in bytes; indexes and lists of added tokens have a few
million.
"""
MAX_NUMBER, MAX_ITEMS = 1 << 24, 4096
"""In configurations that other libraries interpret: magnitude of a number, length of a list."""


@dataclass(frozen=True)
class Fields:
    """A JSON object of an untrusted file."""

    values: Mapping[str, Any]
    where: str
    """File, and object in it, for messages."""
    error: type[SeedEdgeError] = CheckpointError

    @classmethod
    def read(
        cls, path: Path, limit: int = MAX_JSON_BYTES, error: type[SeedEdgeError] = CheckpointError
    ) -> Fields:
        """The object in a JSON file.

        Raises:
            SeedEdgeError: of class `error`: the file is missing, cannot be read, is not JSON, or holds no
            object.
        """
        return cls.of(read_checked_json(path, limit, error), str(path), error)

    @classmethod
    def of(cls, value: Any, where: str, error: type[SeedEdgeError] = CheckpointError) -> Fields:
        """A value that has to be an object.

        Raises:
            SeedEdgeError: of class `error`: it is none.
        """
        if not isinstance(value, dict):
            raise error(f"{printable(where)} is no JSON object")
        return cls(value, where, error)

    def integer(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """An integer in [least, most]; `default` where the key is missing or null."""
        value = self._value(key, default)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not least <= value <= most:
            self._fail(key, value, f"an integer from {least:,} to {most:,}")
        return int(value)

    def number(self, key: str, least: float, most: float, default: float | None = None) -> float:
        """A finite number in [least, most]; `default` where the key is missing or null."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
            self._fail(key, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A boolean; `default` where the key is missing or null."""
        value = self._value(key, default)
        if type(value) is not bool:
            self._fail(key, value, "true or false")
        return bool(value)

    def text(self, key: str, default: str | None = None, most: int = 1000) -> str:
        """A text of at most `most` characters."""
        value = self._value(key, default)
        if not isinstance(value, str) or len(value) > most:
            self._fail(key, value, f"a text of at most {most:,} characters")
        return str(value)

    def integers(self, key: str, least: int, most: int, longest: int) -> tuple[int, ...]:
        """A list of 1 to `longest` integers in [least, most]."""
        value = self._value(key, None)
        if not isinstance(value, list) or not 0 < len(value) <= longest:
            self._fail(key, value, f"a list of 1 to {longest} integers")
        if not all(type(each) is int and least <= each <= most for each in value):
            self._fail(key, value, f"a list of integers from {least:,} to {most:,}")
        return tuple(value)

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse any value but those that are allowed; a key that is missing or null is fine."""
        value = self.values.get(key)
        if value is not None and not any(type(value) is type(each) and value == each for each in allowed):
            self._fail(key, value, " or ".join(map(repr, allowed)) if allowed else "missing or null")

    def bounded(self, *but: str) -> None:
        """Refuse a number or list anywhere in the object that is so large that no model has it; `but` is
        checked elsewhere.
        """
        for key, value in _leaves(self.values):
            if key in but:
                continue
            if isinstance(value, list):
                if len(value) > MAX_ITEMS:
                    self._fail(key, f"a list of {len(value):,}", f"a list of at most {MAX_ITEMS:,}")
            elif type(value) in (int, float) and abs(value) > MAX_NUMBER:
                self._fail(key, value, f"a number up to {MAX_NUMBER:,}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise self.error(f"{printable(self.where)}: {key} is missing; copy or download it again")
        return default

    def _fail(self, key: str, value: Any, expected: str) -> None:
        raise self.error(
            f"{printable(self.where)}: {printable(key)} is {shown(value)}; it must be {expected}"
        )


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with their values: numbers, texts and lists; what is in objects and lists too."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _leaves(each, f"{key}.{name}" if key else str(name))
        return
    yield key, value
    if isinstance(value, list):
        for each in value[:MAX_ITEMS]:
            yield from _leaves(each, key)


def read_checked_json(
    path: Path, limit: int = MAX_JSON_BYTES, error: type[SeedEdgeError] = CheckpointError
) -> Any:
    """The value of a JSON file of a checkpoint.

    Raises:
        SeedEdgeError: of class `error`: it is missing, no regular file, too large, or not JSON.
    """
    if not path.exists():
        raise error(f"{printable(str(path))} is missing")
    return read_json(path, limit, error)
