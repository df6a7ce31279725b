import json
import os
import socket
import time

import pytest

from seed_edge.errors import CodesError, PromptError
from seed_edge.inputs import (
    depth_over,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    special_file_type,
)

LIMIT = 1000


def test_a_regular_file_is_read_also_by_a_link(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + "여우".encode())
    (tmp_path / "b").symlink_to("a")
    assert read_text(tmp_path / "b", LIMIT) == "여우" and special_file_type(tmp_path / "b") == ""
    with open_regular(tmp_path / "a") as file:
        assert file.read(3) == b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "kind",
    ["pipe", "link to a pipe", "device", "terminal", "folder", "socket", "missing", "loop", "nul", "long"],
)
def test_nothing_else_is_opened_and_nothing_waits(tmp_path, kind):
    path = tmp_path / "a\x1b[31m"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "b")
        path.symlink_to("b")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "terminal":
        path.symlink_to("/dev/tty")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "nul":
        path = tmp_path / "a\0b"
    elif kind == "long":
        path = tmp_path / ("x" * 5000)
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "socket":
            server.bind(str(path))
        started = time.monotonic()
        for read in (read_bytes, read_text, read_json):
            with pytest.raises(CodesError) as caught:
                read(path, LIMIT, CodesError)
            assert str(caught.value).isprintable()
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 10**12])
def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path, size):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(size)
    if size <= LIMIT:
        assert len(read_bytes(tmp_path / "a", LIMIT)) == size
    else:
        with pytest.raises(PromptError, match="over 1,000 bytes"):
            read_bytes(tmp_path / "a", LIMIT, PromptError)


def test_bytes_that_are_not_utf8_are_told_with_their_place(tmp_path):
    (tmp_path / "a").write_bytes(b"abc\xff")
    with pytest.raises(CodesError, match="byte 3"):
        read_text(tmp_path / "a", LIMIT, CodesError)


REFUSED = [
    "", "{", "nul", "NaN", "[Infinity]", "-Infinity", "1e400", "[-1e999]", str(2**63), str(-(2**63) - 1), "9" * 5000, "-" + "9" * 5000,
    '{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', "[" * 65 + "]" * 65, "[" * 100_000, '{"a":' * 100_000, "[" * 3000 + "]" * 3000, "1 2", "\x1b", "'a'",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text[:24]))
def test_json_that_cannot_be_used_is_one_line(text):
    with pytest.raises(CodesError, match="not valid JSON") as caught:
        parse_json(text, "a\x1b.json", CodesError)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(2**63), 2**63 - 1, 1.5, -0.0, 1e308, "a\x1b\ud800", [], {}, {"a": [1, {"b": None}]}],
)
def test_other_json_is_what_json_says(value):
    assert parse_json(json.dumps(value), "x") == value


def test_depth_counts_lists_and_objects():
    assert (
        not depth_over([[1]], 3)
        and depth_over([[1]], 1)
        and depth_over({"a": {"b": []}}, 1)
        and not depth_over(1, 1)
    )
