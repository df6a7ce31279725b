import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from seed_edge.errors import BundleError
from seed_edge.export.stages import fingerprint, resumable
from seed_edge.manifest import MANIFEST


def export(out, key, work, said=None, replace=False):
    with resumable(out, replace, key, (said if said is not None else []).append) as stages:
        for name, what in work.items():
            stages.run(name, lambda what=what: what(stages.folder))
        (stages.folder / MANIFEST).write_text("whole")


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
    assert names(tmp_path) == [".out.export"] and "the same command goes on there" in said[-1]
    export(tmp_path / "out", "k", {"a": write("a", times), "b": write("half", times)}, said)
    assert times == ["a", "half"] and "a: done before" in said
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
    assert times == ["a", "c"] and "starting anew" in said[0]
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
    with pytest.raises(BundleError, match="--replace"):
        export(tmp_path / "out", "k", {"b": write("b")})
    export(tmp_path / "out", "k", {"b": write("b")}, replace=True)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["b", MANIFEST]


PROGRAM = """
import sys, time
from pathlib import Path
from seed_edge.export.stages import resumable
with resumable(Path(sys.argv[1]), False, "k", lambda text: print(text, flush=True)) as stages:
    stages.run("first", lambda: (stages.folder / "first").write_text("1"))
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
    stages.run("second", lambda: (stages.folder / "second").write_text("2"))
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
def test_kill_9_loses_no_finished_stage_and_leaves_no_bundle(tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(out), "60"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    again = subprocess.run([sys.executable, "-c", PROGRAM, str(out), "0"], capture_output=True, text=True)
    assert again.returncode == 0 and "first: done before" in again.stdout
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
