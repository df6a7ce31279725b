"""A part of a bundle is first opened in a child process: what ends the child is one line here, and what passed is remembered."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from gguf_bytes import File
from PIL import Image

import seed_edge
from seed_edge.bundle import EMBEDDED, Bundle, entry_for
from seed_edge.errors import BundleError, SeedEdgeError
from seed_edge.manifest import DECODER, ENCODER, MANIFEST
from seed_edge.runtime import isolated_load, selftest
from seed_edge.runtime.isolated_load import check_all_parts, ensure_safe, part_names
from seed_edge.runtime.onnx_session import choose_device


@pytest.fixture
def bundle(tiny, tmp_path):
    """A copy of the tiny bundle that nothing is remembered of; old enough to be remembered."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny, folder)
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SEED_EDGE_HOME", str(tmp_path / "home"))


@pytest.fixture
def children(monkeypatch):
    """Commands of the child processes that are started."""
    found, run = [], subprocess.run
    monkeypatch.setattr(
        isolated_load.subprocess,
        "run",
        lambda words, **options: (found.append(words), run(words, **options))[1],
    )
    return found


def with_language_model(folder, change):
    """Change the language model, and the manifest so that it fits; the file seems old."""
    path = folder / "llm.gguf"
    file = File.parse(path.read_bytes())
    change(file)
    path.write_bytes(file.bytes())
    os.utime(path, (1, 1))
    manifest = Bundle.read(folder).manifest
    files = manifest.files | {path.name: entry_for(path)}
    text = manifest.to_json()
    for name in ("size", "sha256"):
        text = text.replace(
            str(getattr(manifest.files[path.name], name)), str(getattr(files[path.name], name))
        )
    (folder / MANIFEST).write_text(text)
    return Bundle.open(folder)


def kinds(name, kind):
    def change(file):
        file.tensors = [(n, shape, kind if n == name else k, offset) for n, shape, k, offset in file.tensors]

    return change


def values(key, value):
    def change(file):
        file.values = [(k, kind, value if k == key else old) for k, kind, old in file.values]

    return change


@pytest.mark.parametrize(
    "change",
    [
        kinds(b"blk.1.attn_v.weight", 25),
        kinds(b"token_embd.weight", 25),
        kinds(b"output_norm.weight", 26),
        values(b"llama.attention.layer_norm_rms_epsilon", -1.0),
        values(b"llama.block_count", 65536),
        values(b"tokenizer.ggml.model", b"none"),
    ],
)
def test_what_ends_llama_cpp_ends_the_child_alone(bundle, home, monkeypatch, change):
    """The rules would refuse these files; here they are let through to see what stands behind them."""
    opened = with_language_model(bundle, change)
    with pytest.raises(BundleError, match="is not the language model that the manifest describes"):
        ensure_safe(opened, "llm.gguf")
    monkeypatch.setattr(isolated_load, "check_rules", lambda bundle, name: None)
    with pytest.raises(
        BundleError, match=r"llm\.gguf crashes the process that opens it \(SIG(ABRT|SEGV)\)"
    ) as error:
        ensure_safe(opened, "llm.gguf")
    assert "\n" not in str(error.value)


def test_weights_that_are_no_numbers_are_refused(bundle, home):
    def change(file):
        file.data = b"\xff\x7f" * (len(file.data) // 2)

    with pytest.raises(SeedEdgeError, match=r"llm\.gguf"):
        ensure_safe(with_language_model(bundle, change), "llm.gguf")


def test_what_passed_is_remembered_until_something_changes(bundle, home, children):
    for _ in range(2):
        with seed_edge.load(bundle, device="cpu") as edge:
            edge.caption(Image.new("RGB", (16, 16), "red"))
            edge.draw("a house", seed=1)
    assert len(children) == 1  # a small bundle is tried as a whole
    path = bundle / MANIFEST
    path.write_text(path.read_text().replace('"max_caption_ids": 12', '"max_caption_ids": 11'))
    ensure_safe(Bundle.open(bundle), ENCODER)
    assert len(children) == 2
    os.utime(bundle / DECODER, (5, 5))
    ensure_safe(Bundle.open(bundle), DECODER)
    assert len(children) == 3 and children[-1][-1] == DECODER


def test_parts_of_a_large_bundle_are_tried_one_by_one_when_they_are_needed(
    bundle, home, children, monkeypatch
):
    monkeypatch.setattr(isolated_load, "BATCH_SIZE", 100)
    with seed_edge.load(bundle, device="cpu") as edge:
        edge.encode([Image.new("RGB", (16, 16), "red")])
        assert [words[-1] for words in children] == [ENCODER]
        edge.decode([0, 1, 2, 3])
        assert [words[-1] for words in children] == [ENCODER, DECODER]


def test_the_embedded_bundle_is_not_tried(home, children, examples):
    with seed_edge.load(device="cpu") as edge:
        edge.encode([examples / "cat.jpg"])
    assert not children


def test_a_child_that_hangs_or_cannot_start_is_one_line(bundle, home, monkeypatch, tmp_path):
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setattr(isolated_load.sys, "executable", str(slow))
    monkeypatch.setattr(isolated_load, "BASE_SECONDS", 1)
    with pytest.raises(BundleError, match=r"encoder\.onnx is not done after 1 seconds"):
        ensure_safe(Bundle.open(bundle), ENCODER)
    monkeypatch.setattr(isolated_load.sys, "executable", str(tmp_path / "none"))
    with pytest.raises(BundleError, match="no process can be started"):
        ensure_safe(Bundle.open(bundle), ENCODER)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_child_that_takes_too_much_memory_is_one_line(bundle, home, monkeypatch):
    monkeypatch.setattr(isolated_load, "BASE_MEMORY", 8 << 20)
    monkeypatch.setattr(isolated_load, "MEMORY_PER_BYTE", 0)
    with pytest.raises(BundleError, match=r"encoder\.onnx") as error:
        ensure_safe(Bundle.open(bundle), ENCODER)
    assert "\n" not in str(error.value)


def test_one_bad_part_does_not_keep_the_others_from_being_used(bundle, home):
    opened = with_language_model(bundle, values(b"llama.rope.freq_base", -1.0))
    with seed_edge.load(opened.path, device="cpu") as edge:
        assert edge.encode([Image.new("RGB", (16, 16), "red")]).tolist() == [[4, 4, 4, 4]]
        with pytest.raises(BundleError, match=r"rope\.freq_base"):
            edge.draw("a house")


def test_verify_tries_every_part_and_tells_which_one_fails(bundle, home, children):
    assert part_names(Bundle.open(EMBEDDED)) == ["decoder.onnx", "encoder.onnx", "llm.gguf"]
    check_all_parts(Bundle.open(bundle))
    assert len(children) == 1 and sorted(children[0][-3:]) == sorted(part_names(Bundle.open(bundle)))
    opened = with_language_model(
        bundle, kinds(b"output.weight", 30)
    )  # fp16 read as bf16: numbers, if odd ones
    assert "hashes equal" in selftest.verify(opened, choose_device("cpu"))


def test_a_decoder_that_gives_no_numbers_is_refused(bundle, home):
    path = bundle / DECODER
    raw = bytearray(path.read_bytes())
    at = raw.find(np.array([0, 0, 0, 0, 0, 1], "<f4").tobytes())  # its table of colours
    raw[at : at + 4] = np.array(np.nan, "<f4").tobytes()
    before = entry_for(path)
    path.write_bytes(raw)
    os.utime(path, (1, 1))
    manifest = bundle / MANIFEST
    manifest.write_text(manifest.read_text().replace(before.sha256, entry_for(path).sha256))
    with pytest.raises(BundleError, match="not finite"):
        ensure_safe(Bundle.open(bundle), DECODER)
