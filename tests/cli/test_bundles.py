import json
import shutil
import struct

import pytest
from click.testing import CliRunner

from seed_edge import doctor as doctor_module
from seed_edge.bundle import EMBEDDED, Bundle
from seed_edge.cli import cli
from seed_edge.user_dirs import bundles_folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command with a user's folder of its own."""
    monkeypatch.setenv("SEED_EDGE_HOME", str(tmp_path / "home"))

    def call(*arguments, code=0, **options):
        result = CliRunner().invoke(cli, list(map(str, arguments)), **options)
        assert result.exit_code == code, result.output
        return result

    return call


# ---- bundles ----------------------------------------------------------------------------------------------------


def test_a_bundle_that_was_added_is_found_by_name_and_removed(run, tiny, examples, tmp_path, monkeypatch):
    assert run("bundles", "add", tiny, "--name", "small").stdout.strip() == str(bundles_folder() / "small")
    monkeypatch.chdir(tmp_path)
    by_name = run("caption", examples / "coffee.jpg", "--bundle", "small").stdout
    assert by_name == run("caption", examples / "coffee.jpg", "--bundle", tiny).stdout
    assert run("bundles", "path", "small").stdout.strip() == str(bundles_folder() / "small")
    assert [line.split("\t")[0] for line in run("bundles", "list").stdout.splitlines()] == ["mini", "small"]
    assert "already exists" in run("bundles", "add", tiny, "--name", "small", code=1).stderr
    run("bundles", "add", tiny, "--name", "small", "--replace")
    assert run("bundles", "remove", "small", input="n\n", code=1) and (bundles_folder() / "small").is_dir()
    run("bundles", "remove", "small", "--yes")
    assert not list(bundles_folder().iterdir())
    assert "small: no such bundle" in run("bundles", "remove", "small", "-y", code=1).stderr
    assert (
        "small: no such bundle" in run("caption", examples / "coffee.jpg", "--bundle", "small", code=1).stderr
    )


def test_a_damaged_bundle_is_not_added(run, tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "bundle")
    data = bytearray((tmp_path / "bundle" / "llm.gguf").read_bytes())
    data[-1] ^= 1
    (tmp_path / "bundle" / "llm.gguf").write_bytes(data)
    assert "is not the file that was exported" in run("bundles", "add", tmp_path / "bundle", code=1).stderr
    assert not bundles_folder().exists()
    assert "name of the embedded bundle" in run("bundles", "add", tiny, "--name", "mini", code=1).stderr
    assert "is not a valid name of a bundle" in run("bundles", "add", tiny, "--name", "../x", code=1).stderr


def test_adding_a_bundle_to_a_full_disk_is_an_error(run, tiny, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    assert "needs 91,317 bytes, but 10 are free" in run("bundles", "add", tiny, code=1).stderr


def test_list_shows_damaged_bundles_with_their_error(run, tiny):
    run("bundles", "add", tiny, "--name", "broken")
    run("bundles", "add", tiny, "--name", "whole")
    (bundles_folder() / "broken" / "llm.gguf").unlink()
    records = [json.loads(line) for line in run("bundles", "list", "--json").stdout.splitlines()]
    assert [record["name"] for record in records] == ["mini", "broken", "whole"]
    assert "is missing" in records[1]["error"] and records[2]["bytes"] == 91317


def test_info_prints_the_abilities_of_a_bundle(run, tiny):
    told = json.loads(run("bundles", "info", "--json").stdout)
    manifest = Bundle.open().manifest
    assert set(told["able_to"]) == {"encode", "decode", "caption", "ask", "draw", "edit", "chat"}
    assert told["name"] == manifest.name
    assert told["codes"]["codebook_size"] == manifest.codes.codebook_size and told["path"] == str(EMBEDDED)
    assert f"codebook_size: {manifest.codes.codebook_size:,}" in run("bundles", "info").stdout


# ---- inspect ----------------------------------------------------------------------------------------------------


def test_inspect_prints_the_provenance_of_an_image(run, tiny, tmp_path):
    picture = tmp_path / "a.png"
    run("draw", "a thing", "--seed", 5, "-o", picture, "--bundle", tiny)
    told = json.loads(run("inspect", picture, "--json").stdout)
    assert (told["prompt"], told["bundle"], told["drawn"][0]["seed"]) == ("a thing", "tiny", 5)
    assert "prompt: a thing" in run("inspect", picture).stdout
    run("draw", "a thing", "--no-metadata", "-o", picture, "--bundle", tiny)
    assert "has no seed-edge metadata" in run("inspect", picture, code=1).stderr


def test_inspect_reads_graphs_and_language_models_outside_a_bundle(run, tiny, tmp_path):
    for name in ("encoder.onnx", "llm.gguf"):
        shutil.copy(tiny / name, tmp_path / f"copy-{name}")
    graph = json.loads(run("inspect", tmp_path / "copy-encoder.onnx", "--json").stdout)
    assert graph["inputs"] == {"pixel_values": ["batch", 3, 16, 16]} and graph["fit_for_a_bundle"] == "yes"
    model = json.loads(run("inspect", tmp_path / "copy-llm.gguf", "--json").stdout)
    assert model["says"]["general.architecture"] == "llama" and model["weights"] == sum(
        model["weights_by_type"].values()
    )
    assert "llama.block_count" in run("inspect", tmp_path / "copy-llm.gguf").stdout
    assert json.loads(run("inspect", tiny, "--json").stdout) == json.loads(
        run("inspect", tiny / "manifest.json", "--json").stdout
    )


def test_inspect_escapes_control_characters(run, tmp_path):
    evil = "name\x1b]0;owned\x07"
    key = b"general.name"
    value = evil.encode()
    data = (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", len(key))
        + key
        + struct.pack("<IQ", 8, len(value))
        + value
    )
    (tmp_path / "evil.gguf").write_bytes(data)
    told = run("inspect", tmp_path / "evil.gguf").stdout
    assert "owned" in told and "\x1b" not in told and "\x07" not in told


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"hello", "a.txt", "is not a bundle, a GGUF file, an ONNX file, or an image drawn by seed-edge"),
        (b"hello", "a.onnx", "is a broken ONNX file"),
        (b"GGUF", "a.gguf", "header is truncated"),
        (b"\x89PNG\r\n", "a.png", "the image is damaged or cannot be read"),
        (b"", "a", "is not a bundle"),
    ],
)
def test_inspect_of_an_unknown_file_is_a_one_line_error(run, tmp_path, content, name, words):
    (tmp_path / name).write_bytes(content)
    told = run("inspect", tmp_path / name, code=1).stderr
    assert words in told and len(told.strip().splitlines()) == 1
    assert "no such bundle" in run("inspect", tmp_path / "nothing", code=1).stderr


# ---- doctor -----------------------------------------------------------------------------------------------------


def checks_of(result):
    told = json.loads(result.stdout)
    return told["state"], {check["id"]: check for check in told["checks"]}


def test_doctor_finds_no_problem_on_a_healthy_machine(run, monkeypatch):
    monkeypatch.setattr(doctor_module, "available_memory", lambda: 8 << 30)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    state, checks = checks_of(run("doctor", "--json"))
    assert state == "ok" and {
        "python",
        "processor",
        "onnxruntime",
        "llama.cpp",
        "memory",
        "bundle mini",
    } <= set(checks)
    assert "onnxruntime" in run("doctor").stdout


def test_doctor_warns_with_advice(run, monkeypatch):
    monkeypatch.setattr(doctor_module, "available_memory", lambda: 100 << 20)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    state, checks = checks_of(run("doctor", "--json", code=1))
    assert (
        state == "warning"
        and checks["memory"]["state"] == "warning"
        and "--low-memory" in checks["memory"]["advice"]
    )
    assert checks["threads"]["advice"] == "unset OMP_WAIT_POLICY"
    assert "try: unset OMP_WAIT_POLICY" in run("doctor", code=1).stdout


def test_doctor_reports_a_damaged_bundle_as_broken(run, tiny):
    run("bundles", "add", tiny, "--name", "half")
    (bundles_folder() / "half" / "decoder.onnx").unlink()
    state, checks = checks_of(run("doctor", "--json", code=2))
    assert state == "broken" and checks["bundle half"]["advice"] == "seed-edge bundles remove half"


def test_doctor_warns_of_a_gpu_without_its_libraries_or_without_llama_cpp_support(run, monkeypatch):
    from seed_edge.runtime import onnx_session

    monkeypatch.setattr(doctor_module, "available_memory", lambda: 8 << 30)
    monkeypatch.setattr(onnx_session, "cuda_problem", lambda: None)
    monkeypatch.setattr(doctor_module, "free_gpu_memory", lambda: 6 << 30)
    monkeypatch.setattr(doctor_module, "_version", lambda name: None)
    state, checks = checks_of(run("doctor", "--json", code=1))
    assert (
        state == "warning"
        and "6.4 GB free" in checks["cuda"]["found"]
        and "onnxruntime-gpu[cuda,cudnn]" in checks["cuda"]["advice"]
    )
    assert "GGML_CUDA" in checks["llama.cpp-gpu"]["advice"]
