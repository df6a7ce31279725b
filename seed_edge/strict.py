"""Parses JSON or TOML values as dataclasses, strictly: unknown keys and wrong types raise an error that names
them.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from seed_edge.display import printable, shown
from seed_edge.errors import SeedEdgeError

T = TypeVar("T")


@dataclass(frozen=True)
class StrictReader:
    """Parses the dataclasses of one kind of file.

    Fields may have the types `str`, `bool`, `int`, `float` (also accepts integers), `Any`, dataclasses,
    tuples, dictionaries with string keys, and unions of one of these with None.
    """

    error: type[SeedEdgeError]
    """Class of the errors that are raised."""
    advice: str = ""
    """End of each message, such as `; export again`."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Old name of a key -> its new name, for messages."""
    check_number: Callable[[str, int | float], None] | None = None
    """Called with the location and the value of each `int` and `float`; raises if the number is out of range.
    """

    def read(self, kind: type[T], value: Any, where: str) -> T:
        """Parse a JSON object or a TOML table as the dataclass `kind`.

        Args:
            where: file, or part of a file, for messages.

        Raises:
            SeedEdgeError: of class `error`: a key is unknown or missing, or a value is of the wrong type.
        """
        result: T = self._object(kind, value, where)
        return result

    def _object(self, kind: Any, value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise self._fault(f"{where} is {shown(value)}; it must be an object")
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise self._fault(f"{where}: {self._unknown_key(unknown[0], hints)}")
        required = [
            f.name for f in dataclasses.fields(kind) if f.default is f.default_factory
        ]  # both are MISSING
        missing = [name for name in required if name not in value]
        if missing:
            raise self._fault(f"{where}: {missing[0]} is missing")
        return kind(
            **{name: self._value(hints[name], item, f"{where}: {name}") for name, item in value.items()}
        )

    def _unknown_key(self, key: str, hints: Mapping[str, Any]) -> str:
        new_name = self.renamed.get(key)
        if new_name in hints:
            return f"key {key} was renamed; write {new_name}"
        return f"unknown key {printable(key)[:100]}; known here: {', '.join(hints)}"

    def _value(self, hint: Any, value: Any, where: str) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):  # of one type and None
            (other,) = (argument for argument in arguments if argument is not types.NoneType)
            return None if value is None else self._value(other, value, where)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self._object(hint, value, where)
        if origin is dict and isinstance(value, dict):
            return {key: self._value(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
        if origin is tuple and isinstance(value, list):
            inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(inner) != len(value):
                raise self._fault(f"{where} has {len(value)} values; it takes {len(inner)}")
            return tuple(self._value(part, item, where) for part, item in zip(inner, value, strict=True))
        if hint is Any or (hint in (str, bool) and type(value) is hint):
            return value
        if hint in (int, float) and type(value) in (int, hint):
            return self._number(hint, value, where)
        raise self._fault(f"{where} is {shown(value)}; it must be {getattr(hint, '__name__', hint)}")

    def _number(self, kind: type[int] | type[float], value: float, where: str) -> int | float:
        try:
            number = kind(value)
        except OverflowError:
            raise self._fault(f"{where} is {shown(value)}; it is too large") from None
        if self.check_number is not None:
            self.check_number(where, number)
        return number

    def _fault(self, message: str) -> SeedEdgeError:
        return self.error(message + self.advice)
