from dataclasses import dataclass, field
from typing import Any

import pytest

from seed_edge.errors import BundleError, DataError
from seed_edge.strict import StrictReader


@dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    pair: tuple[int, str] = (0, "")
    many: tuple[float, ...] = ()
    flag: bool = False
    more: dict[str, int] = field(default_factory=dict)
    maybe: Inner | None = None
    free: Any = None


READER = StrictReader(DataError, "; try again", {"width": "size"})


def test_nested_values_become_dataclasses_of_their_types():
    value = {
        "name": "a",
        "inner": {"size": 3, "rate": 1},
        "pair": [1, "b"],
        "many": [1, 2.5],
        "more": {"x": 1},
        "maybe": {"size": 4},
        "free": [1],
    }
    read = READER.read(Outer, value, "file")
    assert read == Outer("a", Inner(3, 1.0), (1, "b"), (1.0, 2.5), False, {"x": 1}, Inner(4), [1])
    assert type(read.inner.rate) is float and type(read.many[0]) is float
    assert READER.read(Outer, {"name": "a", "inner": {"size": 3}, "maybe": None}, "file").maybe is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": None}, "file: name is None; it must be str"),
        ({"inner": 3}, "file: inner is 3; it must be an object"),
        ({"inner": {}}, "file: inner: size is missing"),
        ({"inner": {"size": 1, "height": 2}}, "file: inner: unknown key height; known here: size, rate"),
        ({"inner": {"width": 2}}, "file: inner: key width was renamed; write size"),
        ({"width": 2}, "file: unknown key width; known here: name, inner"),
        ({"inner": {"size": True}}, "size is True; it must be int"),
        ({"inner": {"size": 1.0}}, "size is 1.0; it must be int"),
        ({"inner": {"size": 1, "rate": "1"}}, "rate is '1'; it must be float"),
        ({"inner": {"size": 1, "rate": 10**400}}, "it is too large"),
        ({"pair": [1]}, "pair has 1 values; it takes 2"),
        ({"pair": [1, 2]}, "pair is 2; it must be str"),
        ({"many": 3}, "many is 3; it must be tuple"),
        ({"flag": 1}, "flag is 1; it must be bool"),
        ({"more": {"x": "1"}}, "more: x is '1'; it must be int"),
        ({"a\nb": 1}, r"unknown key a\nb"),
    ],
)
def test_a_wrong_key_or_value_is_named(change, says):
    with pytest.raises(DataError) as caught:
        READER.read(Outer, {"name": "a", "inner": {"size": 3}} | change, "file")
    text = str(caught.value)
    assert says in text and text.endswith("; try again") and len(text.splitlines()) == 1


def test_numbers_are_checked_where_the_reader_asks_for_it():
    def positive(where, number):
        if number <= 0:
            raise BundleError(f"{where} is {number}")

    reader = StrictReader(BundleError, check_number=positive)
    assert reader.read(Inner, {"size": 1, "rate": 2}, "file") == Inner(1, 2.0)
    with pytest.raises(BundleError, match="file: size is -1"):
        reader.read(Inner, {"size": -1}, "file")
