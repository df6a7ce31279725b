"""Reads JSON files of checkpoints: every key with its type and range; error messages name the file and the
key.

Numbers are checked before anything is built from them, so that a configuration of kilobytes cannot cause
gigabytes to be allocated.
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
"""Maximum size of a JSON file of a checkpoint; indexes and lists of added tokens have a few million bytes."""
MAX_NUMBER, MAX_ITEMS = 1 << 24, 4096
"""Maximum magnitude of a number and length of a list, in configurations that other libraries interpret."""


@dataclass(frozen=True)
class Fields:
    """A JSON object of an untrusted file."""

    values: Mapping[str, Any]
    where: str
    """The file and the object in it, for messages."""
    error: type[SeedEdgeError] = CheckpointError

    @classmethod
    def read(
        cls, path: Path, limit: int = MAX_JSON_BYTES, error: type[SeedEdgeError] = CheckpointError
    ) -> Fields:
        """Read the object in a JSON file.

        Raises:
            SeedEdgeError: of class `error`: the file is missing, cannot be read, or is not a JSON object.
        """
        return cls.of(read_checked_json(path, limit, error), str(path), error)

    @classmethod
    def of(cls, value: Any, where: str, error: type[SeedEdgeError] = CheckpointError) -> Fields:
        """Return the fields of a parsed JSON object.

        Raises:
            SeedEdgeError: of class `error`: `value` is not an object.
        """
        if not isinstance(value, dict):
            raise error(f"{printable(where)} is not a JSON object")
        return cls(value, where, error)

    def integer(self, key: str, minimum: int, maximum: int, default: int | None = None) -> int:
        """Return an integer in [minimum, maximum], or `default` if the key is missing or null."""
        value = self._value(key, default)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not minimum <= value <= maximum:
            self._fail(key, value, f"an integer from {minimum:,} to {maximum:,}")
        return int(value)

    def number(self, key: str, minimum: float, maximum: float, default: float | None = None) -> float:
        """Return a finite number in [minimum, maximum], or `default` if the key is missing or null."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or not minimum <= value <= maximum:
            self._fail(key, value, f"a number from {minimum:g} to {maximum:g}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return a boolean, or `default` if the key is missing or null."""
        value = self._value(key, default)
        if type(value) is not bool:
            self._fail(key, value, "true or false")
        return bool(value)

    def text(self, key: str, default: str | None = None, max_length: int = 1000) -> str:
        """Return a text of at most `max_length` characters, or `default` if the key is missing or null."""
        value = self._value(key, default)
        if not isinstance(value, str) or len(value) > max_length:
            self._fail(key, value, f"a text of at most {max_length:,} characters")
        return str(value)

    def integers(self, key: str, minimum: int, maximum: int, max_length: int) -> tuple[int, ...]:
        """Return a list of 1 to `max_length` integers in [minimum, maximum]."""
        value = self._value(key, None)
        if not isinstance(value, list) or not 0 < len(value) <= max_length:
            self._fail(key, value, f"a list of 1 to {max_length} integers")
        if not all(type(item) is int and minimum <= item <= maximum for item in value):
            self._fail(key, value, f"a list of integers from {minimum:,} to {maximum:,}")
        return tuple(value)

    def check_value(self, key: str, *allowed: Any) -> None:
        """Check that a value is one of those allowed, or that the key is missing or null."""
        value = self.values.get(key)
        if value is not None and not any(type(value) is type(item) and value == item for item in allowed):
            self._fail(key, value, " or ".join(map(repr, allowed)) if allowed else "missing or null")

    def check_magnitudes(self, *excluded: str) -> None:
        """Check all numbers and lists within the object against `MAX_NUMBER` and `MAX_ITEMS`.

        Args:
            excluded: keys that are checked elsewhere.
        """
        for key, value in _leaves(self.values):
            if key in excluded:
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
    """Yield all keys with their values within nested objects and lists."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
        return
    yield key, value
    if isinstance(value, list):
        for item in value[:MAX_ITEMS]:
            yield from _leaves(item, key)


def read_checked_json(
    path: Path, limit: int = MAX_JSON_BYTES, error: type[SeedEdgeError] = CheckpointError
) -> Any:
    """Return the value of a JSON file of a checkpoint.

    Raises:
        SeedEdgeError: of class `error`: it is missing, not a regular file, too large, or not JSON.
    """
    if not path.exists():
        raise error(f"{printable(str(path))} is missing")
    return read_json(path, limit, error)
