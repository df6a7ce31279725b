import json

import pytest

from seed_edge.display import json_line, printable

ODD = [
    "\x1b[31m",
    "a\nb\rc\td",
    "\x00\x07\x7f\x9b",
    "\u202ereversed",
    "\u2028\u2029",
    "\udcff\udc80",
    "\ud800",
    "\U000e0001",
    "\ufeff",
]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_nothing_a_terminal_obeys_is_left(text):
    assert printable(text).isprintable() and printable(text).encode("utf-8")
    assert printable(f"ordinary {text} words").startswith("ordinary ")


@pytest.mark.parametrize("text", ["a red fox", "여우 🦊", "é", "a  b", ""])
def test_ordinary_text_stays_as_it_is(text):
    assert printable(text) == text


def test_escapes_name_what_stood_there():
    assert printable("\x1b\n\t\udcff\u202e\U000e0001") == "\\x1b\\n\\t\\xff\\u202e\\U000e0001"


@pytest.mark.parametrize("text", [*ODD, "여우 🦊"], ids=ascii)
def test_json_is_one_line_of_utf8_and_comes_back_exactly(text):
    line = json_line({text: [text, 1]})
    assert (
        len(line.splitlines()) == 1
        and line.encode("utf-8")
        and not set(line) & set("\x1b\x00\x07\x7f\x9b\u202e")
    )
    assert json.loads(line) == {text: [text, 1]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_what_json_does_not_have_is_not_written(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        json_line(value)
