import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from seed_edge.errors import BundleError
from seed_edge.export.resume import fingerprint, resumable
from seed_edge.manifest import MANIFEST


def export(out, key, work, said=None, replace=False):
    with resumable(out, replace, key, (said if said is not None else []).append) as stages:
        for name, what in work.items():
            stages.run(name, lambda what=what: what(stages.folder))
        (stages.folder / MANIFEST).write_text(manifest_of(stages.folder))


def manifest_of(folder):
    """What says of a folder's files that they are a bundle's."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": "0" * 64}
        for path in folder.iterdir()
        if path.name[0] != "."
    }
    return json.dumps({"format": 2, "files": files})


def write(name, times=None):
    def work(folder):
        if times is not None:
            times.append(name)
        (folder / name).write_text(name)
        return {"wrote": name}

    return work


def stop(folder):
    (folder / "half").write_text("half")
    raise KeyboardInterrupt


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_export_leaves_the_bundle_and_nothing_else(tmp_path):
    export(tmp_path / "out", "k", {"a": write("a"), "b": write("b")})
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a", "b", MANIFEST]


def test_an_interrupted_export_goes_on_at_the_stage_it_was_in(tmp_path):
    times, said = [], []
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "out", "k", {"a": write("a", times), "b": stop}, said)
    assert names(tmp_path) == [".out.export"] and "the same command resumes the export" in said[-1]
    export(tmp_path / "out", "k", {"a": write("a", times), "b": write("half", times)}, said)
    assert times == ["a", "half"] and "a: already done" in said
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a", "half", MANIFEST]


@pytest.mark.parametrize("key", ["k", "other"])
def test_scratch_folders_of_a_killed_stage_do_not_stand_in_the_way(tmp_path, key):
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "out", "k", {"a": write("a"), "b": stop})
    (tmp_path / ".out.export" / "tmpabc").mkdir()
    (tmp_path / ".out.export" / "tmpabc" / "encoder.onnx").write_text("half")
    export(tmp_path / "out", key, {"a": write("a"), "b": write("half")})
    assert names(tmp_path / "out") == ["a", "half", MANIFEST]


def test_other_inputs_start_anew(tmp_path):
    times, said = [], []
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "out", "k", {"a": write("a", times), "b": stop})
    export(tmp_path / "out", "other", {"c": write("c", times)}, said)
    assert times == ["a", "c"] and "starting from the beginning" in said[0]
    assert names(tmp_path / "out") == ["c", MANIFEST]


def test_nothing_is_left_when_no_stage_was_finished(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "out", "k", {"a": stop})
    assert names(tmp_path) == []


def test_a_second_export_to_the_same_place_is_refused(tmp_path):
    def second(folder):
        with pytest.raises(BundleError, match="another export"):
            export(tmp_path / "out", "k", {"a": write("a")})
        return 1

    export(tmp_path / "out", "k", {"a": second})
    assert names(tmp_path) == ["out"]


def test_what_exists_is_replaced_only_when_told(tmp_path):
    export(tmp_path / "out", "k", {"a": write("a")})
    with pytest.raises(BundleError, match="--overwrite"):
        export(tmp_path / "out", "k", {"b": write("b")})
    export(tmp_path / "out", "k", {"b": write("b")}, replace=True)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["b", MANIFEST]


@pytest.mark.parametrize("kind", ["more", "folder", "link", "garbage", "file", "link to a bundle"])
def test_what_is_no_bundle_or_more_than_one_is_never_replaced(tmp_path, kind):
    out = tmp_path / "out"
    export(out, "k", {"a": write("a")})
    if kind == "more":
        (out / "notes.txt").write_text("mine")
    elif kind == "folder":
        (out / "a").unlink()
        (out / "a").mkdir()
    elif kind == "link":
        (tmp_path / "mine").write_text("mine")
        (out / "a").unlink()
        (out / "a").symlink_to(tmp_path / "mine")
    elif kind == "garbage":
        (out / MANIFEST).write_text('{"name": "an app", "files": ["a"]}')
    elif kind == "link to a bundle":
        out.rename(tmp_path / "elsewhere")
        out.symlink_to(tmp_path / "elsewhere")
    else:
        shutil.rmtree(out)
        out.write_text("mine")
    before = tree(tmp_path)
    times = []
    with pytest.raises(BundleError, match="already exists") as caught:
        export(out, "k", {"b": write("b", times)}, replace=True)
    assert tree(tmp_path) == before and times == [] and "\n" not in str(caught.value)


def test_what_was_put_into_a_bundle_while_another_was_made_is_kept(tmp_path):
    out, key = tmp_path / "out", "k"
    export(out, key, {"a": write("a")})

    def meanwhile(folder):
        (out / "notes.txt").write_text("mine")
        return write("b")(folder)

    with pytest.raises(BundleError, match=r"notes.txt"):
        export(out, key, {"b": meanwhile}, replace=True)
    assert (out / "notes.txt").read_text() == "mine" and (out / "a").exists()
    (out / "notes.txt").unlink()
    said = []
    export(out, key, {"b": write("b")}, said, replace=True)  # the stage is not done again
    assert names(out) == ["b", MANIFEST] and "b: already done" in said


@pytest.mark.parametrize(
    "record", [None, "garbage", "[]", '{"key": 1, "done": {}}', '{"key": "k", "done": {}, "more": 1}', "link"]
)
def test_a_folder_in_the_way_that_no_export_left_is_not_emptied(tmp_path, record):
    place = tmp_path / ".out.export"
    place.mkdir()
    (place / "thesis.txt").write_text("mine")
    if record == "link":
        (tmp_path / "record").write_text('{"key": "other", "done": {}}')
        (place / ".stages.json").symlink_to(tmp_path / "record")
    elif record is not None:
        (place / ".stages.json").write_text(record)
    with pytest.raises(BundleError) as caught:
        export(tmp_path / "out", "k", {"a": write("a")})
    assert (place / "thesis.txt").read_text() == "mine" and "\n" not in str(caught.value)


def test_planted_links_are_not_followed(tmp_path):
    target, place = tmp_path / "target", tmp_path / ".out.export"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    place.symlink_to(target)
    with pytest.raises(BundleError, match="link"):
        export(tmp_path / "out", "k", {"a": write("a")})
    place.unlink()
    place.mkdir()
    (place / ".lock").symlink_to(target / "thesis.txt")
    with pytest.raises(BundleError, match="link"):
        export(tmp_path / "out", "k", {"a": write("a")})
    (place / ".lock").unlink()
    (place / ".stages.json").write_text('{"key": "other", "done": {"a": 1}}')
    (place / "scratch").symlink_to(target)
    export(tmp_path / "out", "k", {"a": write("a")})
    assert (target / "thesis.txt").read_text() == "mine" and names(tmp_path / "out") == ["a", MANIFEST]


def test_temporary_files_of_a_killed_export_go(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "out", "k", {"a": write("a"), "b": stop})
    (tmp_path / ".out.export" / ".stages.json-0123456789abcdef.partial").write_text("half")
    export(tmp_path / "out", "k", {"a": write("a"), "b": write("half")})
    assert names(tmp_path / "out") == ["a", "half", MANIFEST]


def tree(folder):
    """Every path below a folder with its content, or with what it links to."""
    return {
        str(path.relative_to(folder)): path.readlink()
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


PROGRAM = """
import sys, time
from pathlib import Path
from seed_edge.export.resume import resumable
with resumable(Path(sys.argv[1]), False, "k", lambda text: print(text, flush=True)) as stages:
    stages.run("first", lambda: (stages.folder / "first").write_text("1"))
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
    stages.run("second", lambda: (stages.folder / "second").write_text("2"))
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
def test_kill_9_loses_no_finished_stage_and_leaves_no_bundle(tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(out), "60"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    again = subprocess.run([sys.executable, "-c", PROGRAM, str(out), "0"], capture_output=True, text=True)
    assert again.returncode == 0 and "first: already done" in again.stdout
    assert names(out) == ["first", "second"]


@dataclasses.dataclass
class Options:
    name: str = "x"
    replace: bool = False


def test_the_fingerprint_follows_options_and_files(tmp_path):
    (tmp_path / "a").write_text("1")
    first = fingerprint(Options(), tmp_path)
    assert fingerprint(Options(replace=True), tmp_path) == first
    assert fingerprint(Options(name="y"), tmp_path) != first
    time.sleep(0.01)
    (tmp_path / "a").write_text("2")
    assert fingerprint(Options(), tmp_path) != first
    assert fingerprint(Options(), None) != fingerprint(Options(), tmp_path)
