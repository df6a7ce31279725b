"""Exports, evaluation and unpacking leave folders alone that are somebody else's, or that they read."""

import shutil
from pathlib import Path

from helpers import call


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_exports_and_sheets_leave_folders_of_others_alone(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sheets").mkdir()
    Path("sheets/captions.jpg").write_text("mine")
    shutil.copytree(tiny, "bundle")
    before = content(tmp_path)
    words = ("eval", "--data", "data", "--sheets", "sheets", "--bundle", "bundle")
    assert "not a folder of sheets" in call(*words, fails=True).stderr
    for out in ("bundle", "bundle/../bundle"):
        refused = call("export", "--ckpt", "bundle", "--llm", "bundle", "--out", out, "--replace", fails=True)
        assert "an input of this command" in refused.stderr
    assert (
        "not a folder of model"
        in call("train", "start", "--bundle", "bundle", "--out", "sheets", fails=True).stderr
    )
    assert (
        "an input of this command"
        in call("train", "start", "--bundle", "bundle", "--out", "bundle", fails=True).stderr
    )
    assert content(tmp_path) == before
