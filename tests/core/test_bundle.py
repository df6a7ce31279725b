import json
import shutil
from pathlib import Path

import pytest

from seed_edge.bundle import Bundle, staging
from seed_edge.errors import BundleError
from seed_edge.manifest import MANIFEST, Manifest

FILES = ("encoder.onnx", "decoder.onnx", "llm.gguf")


@pytest.fixture
def copy(tiny, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(tiny, folder)
    return folder


def edit(folder, change):
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_the_embedded_bundle_is_whole_light_and_says_where_it_comes_from():
    bundle = Bundle.open()
    bundle.check_hashes()
    manifest = bundle.manifest
    assert sum(entry.size for entry in manifest.files.values()) <= 48_000_000
    assert {path.name for path in bundle.path.iterdir()} == {*manifest.files, MANIFEST}
    assert manifest.license and {"Flickr8k", "EfficientNet-Lite0"} <= {
        source.name.split()[0] for source in manifest.sources
    }


def refused(folder, words):
    with pytest.raises(BundleError, match=words) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)


def test_a_manifest_survives_being_written_and_read(tiny):
    manifest = Bundle.open(tiny).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    refused(copy, name)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(copy, name):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-1])
    refused(copy, f"{name} has")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_noticed(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    refused(copy, f"{name} is not the file that was exported")


@pytest.mark.parametrize("name", [FILES[0], MANIFEST])
def test_links_are_refused(copy, name, tmp_path):
    real = tmp_path / "elsewhere"
    shutil.move(copy / name, real)
    (copy / name).symlink_to(real)
    refused(copy, "link")


def test_an_unlisted_file_is_refused(copy):
    (copy / "extra.bin").write_bytes(b"")
    refused(copy, "extra.bin is not listed")


def test_a_folder_in_place_of_a_file_is_refused(copy):
    (copy / FILES[0]).unlink()
    (copy / FILES[0]).mkdir()
    refused(copy, "not a regular file")


def test_a_file_outside_the_folder_cannot_be_listed(copy):
    edit(copy, lambda m: m["files"].update({"../secret": m["files"].pop(FILES[0])}))
    refused(copy, "lists the wrong files")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format=3), "format 3"),
        (lambda m: m.update(kind="video"), "kind 'video'"),
        (lambda m: m.pop("codes"), "codes is missing"),
        (lambda m: m["language"].pop("vocab"), "language: vocab is missing"),
        (lambda m: m.update(extra=1), "unknown key extra"),
        (lambda m: m["language"]["vocab"].update(size="310"), "vocab: size"),
        (lambda m: m["language"]["vocab"].update(size=True), "vocab: size"),
        (lambda m: m["language"]["vocab"].update(boi_id=300), "BOI"),
        (lambda m: m["preprocessing"].update(resize_filter="lanczos"), "lanczos"),
        (lambda m: m["preprocessing"].update(mean=[0.5, 0.5]), "mean"),
        (lambda m: m["language"]["sampling"].update(top_p=0), "top_p"),
        (lambda m: m["language"]["prompts"].update(draw="{text}"), "draw template"),
        (lambda m: m["language"].update(file="../llm.gguf"), "not a plain .gguf file name"),
        (lambda m: m["language"].update(file="other.gguf"), r"wrong files \(llm.gguf, other.gguf\)"),
        (lambda m: m["codes"].update(codebook_size=9), "have different codes"),
        (
            lambda m: m["files"].update({"extra.onnx": m["files"]["encoder.onnx"]}),
            r"wrong files \(extra.onnx\)",
        ),
    ],
)
def test_a_broken_manifest_names_its_fault(copy, change, words):
    edit(copy, change)
    refused(copy, words)


def test_a_manifest_of_format_1_is_read_as_format_2_and_a_log_line_asks_for_an_export(caplog):
    text = (Path(__file__).parent.parent / "fixtures" / "manifest-format-1.json").read_text("utf-8")
    with caplog.at_level("INFO", "seed_edge"):
        manifest = Manifest.from_json(text)
    assert ["format 1" in message and "export" in message for message in caplog.messages] == [True]
    old = json.loads(text)
    assert (
        manifest.license == old["licence"]
        and manifest.language.sampling.best_of == old["language"]["sampling"]["tries"] == 6
    )
    assert [source.license for source in manifest.sources] == [source["licence"] for source in old["sources"]]
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_key_of_format_1_is_unknown_in_format_2_and_never_stands_beside_its_new_name(copy):
    edit(copy, lambda m: m.update(licence="x"))
    refused(copy, "unknown key licence")
    edit(copy, lambda m: m.update(format=1))
    refused(copy, "unknown key licence")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', "\x00"])
def test_a_manifest_that_is_none_is_refused(copy, text):
    (copy / MANIFEST).write_text(text)
    refused(copy, MANIFEST)


def test_no_bundle_at_all(tmp_path):
    refused(tmp_path / "nothing", "no such bundle")
    refused(tmp_path, "manifest.json is missing")


def test_staging_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), staging(out) as folder:
        (folder / "half").write_text("half")
        assert not out.exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with staging(out) as folder:
        (folder / MANIFEST).write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_staging_replaces_a_bundle_only_when_told_and_nothing_else_ever(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(BundleError, match="not a bundle"), staging(out, replace=True):
        pass
    (out / MANIFEST).write_text('{"format": 2, "files": {}}')
    with pytest.raises(BundleError, match="thesis"), staging(out, replace=True):
        pass
    (out / "thesis.txt").unlink()
    with pytest.raises(BundleError, match="--overwrite"), staging(out):
        pass
    with staging(out, replace=True) as folder:
        (folder / MANIFEST).write_text("new")
    assert (out / MANIFEST).read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
