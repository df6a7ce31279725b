"""Training, export and evaluation open no socket either, and write only into the folders they were given."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from helpers import shapes
from watch import isolated, outside, strace_works, traced

TOOL = (sys.executable, "-m", "seed_edge")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline")
    for name in ("home", "kept", "work", "temporary"):
        (folder / name).mkdir()
    shapes(folder / "work" / "shapes.tar")
    # samples that `eval` takes as held out
    shutil.copy(folder / "work" / "shapes.tar", folder / "work" / "shapes-val.tar")
    return folder


@pytest.fixture(scope="module")
def run(place):
    """Run a command where nothing but what it was given is to be touched."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "ORT_", "HF_", "SEED_", "TORCH"))
    }
    places = {"HOME": place / "home", "SEED_EDGE_HOME": place / "kept", "TMPDIR": place / "temporary"}
    environment = kept | {name: str(path) for name, path in places.items()} | {"PYTHONDONTWRITEBYTECODE": "1"}

    def call(*words):
        watch = traced if strace_works() else isolated
        seen = watch([*TOOL, *map(str, words)], place / "work", environment)
        assert seen.code == 0, seen.errors
        assert not seen.sockets, (words, seen.sockets)
        assert not outside(seen, place / "work", place / "kept", place / "temporary")
        assert os.listdir(place / "home") == []
        assert not [path for path in (place / "temporary").rglob("*") if path.is_file()]
        return seen

    return call


@pytest.fixture(scope="module")
def trained(run):
    run("train", "tokenizer", "--recipe", "smoke-tokenizer", "--data", "shapes.tar", "--out", "run")
    run("tokenize", "--run", "run", "--out", "codes")
    run(
        "train",
        "llm",
        "--codes",
        "codes",
        "--out",
        "run/llm",
        "--recipe",
        "smoke-llm",
        "--pictures",
        "run",
        "--prompt",
        "a disc",
    )
    return run


def test_training_export_and_evaluation_are_quiet(trained, place):
    trained("export", "--ckpt", "run", "--out", "bundle")
    trained(
        "eval",
        "--data",
        "shapes-val.tar",
        "--bundle",
        "bundle",
        "--limit",
        "4",
        "--nouns",
        "2",
        "--sheets",
        "sheets",
    )
    assert json.loads((place / "work" / "bundle" / "manifest.json").read_text())["name"] == "bundle"


def test_adapters_are_trained_and_merged_quietly(trained, place):
    tune = ("--recipe", "seed-llama-pretrain", "--llm", "run/llm", "--codes", "codes", "--out", "adapter")
    trained("train", "llm", *tune, "--set", "schedule.steps=2", "--set", "schedule.batch_size=2")
    trained("train", "merge", "--llm", "run/llm", "--lora", "adapter", "--out", "merged")
    trained(
        "train", "start", "--bundle", Path(__file__).parent.parent / "fixtures" / "tiny", "--out", "unpacked"
    )
    assert (place / "work" / "merged" / "model.safetensors").is_file()


def test_official_parts_are_exported_quietly(run, parts):
    run(
        "export",
        "--ckpt",
        parts / "tokenizer",
        "--diffusion",
        parts / "diffusion",
        "--out",
        "official",
        "--image-weights",
        "int8",
    )
