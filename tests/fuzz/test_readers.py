"""Readers of headers, manifests and records meet what no exporter wrote: an answer or one clear error, soon, in little memory."""

import json
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seed_edge.errors import SeedEdgeError
from seed_edge.gguf_header import GgufHeader
from seed_edge.manifest import DECODER, ENCODER, MANIFEST, Manifest
from seed_edge.onnx_header import OnnxHeader
from seed_edge.preprocess import open_image

TINY = Path(__file__).parent.parent / "fixtures" / "tiny"
SECONDS, BYTES = 5.0, 64 << 20
MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def damaged(draw, whole):
    """A file with some bytes changed, cut out, or doubled, or numbers in it made large."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["flip", "number", "cut", "double", "insert"]))
        at = draw(st.integers(0, max(0, len(data) - 1)))
        if kind == "flip" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "number":
            large = draw(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]))
            data[at : at + 8] = struct.pack("<Q", large)
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        else:
            data[at:at] = draw(st.binary(max_size=16))
    return bytes(data)


def bounded(read, path, data):
    """Read a file; only errors that users can be told may come out, soon, and without much memory."""
    path.write_bytes(data)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        read(path)
    except SeedEdgeError as error:
        assert str(error) and "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.perf_counter() - started < SECONDS and peak < BYTES


@MANY
@given(data=damaged((TINY / "llm.gguf").read_bytes()[:8192]))
def test_language_models(data, tmp_path):
    bounded(GgufHeader.read, tmp_path / "a.gguf", data)


@MANY
@given(data=damaged((TINY / ENCODER).read_bytes()) | damaged((TINY / DECODER).read_bytes()))
def test_graphs(data, tmp_path):
    bounded(lambda path: OnnxHeader.read(path).check_bundle_rules(path), tmp_path / "a.onnx", data)


@MANY
@given(data=st.binary(max_size=400).map(lambda tail: b"GGUF\x03\0\0\0" + tail))
def test_language_models_made_up(data, tmp_path):
    bounded(GgufHeader.read, tmp_path / "a.gguf", data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@MANY
@given(data=st.data())
def test_manifests(data, tmp_path):
    told = json.loads((TINY / MANIFEST).read_text())
    place = told
    for _ in range(data.draw(st.integers(0, 2))):
        inner = [key for key, value in place.items() if isinstance(value, dict)]
        if inner:
            place = place[data.draw(st.sampled_from(sorted(inner)))]
    key = data.draw(st.sampled_from(sorted(place) or ["x"]) | st.text(max_size=8))
    place[key] = data.draw(JSON)
    bounded(
        lambda path: Manifest.from_json(path.read_text("utf-8", "replace")),
        tmp_path / "m.json",
        json.dumps(told).encode("utf-8", "replace"),
    )


@MANY
@given(data=st.binary(max_size=300))
def test_images(data, tmp_path):
    for start in (
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"RIFF\x20\0\0\0WEBPVP8 ",
        b"BM",
        b"II*\0",
    ):
        bounded(lambda path: open_image(path, 1_000_000), tmp_path / "a", start + data)


@pytest.mark.parametrize("length", [10, 100, 1000])
def test_json_that_nests_deeply_is_refused(tmp_path, length):
    bounded(lambda path: Manifest.from_json(path.read_text()), tmp_path / "m.json", b"[" * length * 100)
