"""Captions of whole folders: what comes out, what is gone on with, what stops nothing."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from seed_edge.cli import cli


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0, **options):
        extra = ["--bundle", str(tiny), "--device", "cpu"]
        result = CliRunner().invoke(cli, ["caption", *map(str, arguments), *extra], **options)
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def folder(tmp_path):
    """Five images in two folders, and what is no image."""
    place = tmp_path / "photos"
    (place / "more").mkdir(parents=True)
    (place / ".hidden").mkdir()
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.JPG", "more/c.webp", "more/d.gif", "e.bmp", ".hidden/x.png", ".y.png"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(place / name)
    (place / "notes.txt").write_text("no image")
    return place


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


IMAGES = ["photos/a.JPG", "photos/b.png", "photos/e.bmp", "photos/more/c.webp", "photos/more/d.gif"]


def test_a_folder_is_captioned_as_each_of_its_files_is(run, folder):
    told = [line.split("\t") for line in run("photos").stdout.splitlines()]
    assert [name for name, _ in told] == IMAGES
    for name, text in told:
        assert " ".join(run(name).stdout.split()) == text
    assert [json.loads(line)["image"] for line in run("photos/more", "photos/b.png", "--json").stdout.splitlines()] == [
        *IMAGES[3:], "photos/b.png"
    ]  # fmt: skip


def test_lines_go_to_a_file_with_words_before_and_behind(run, folder):
    assert run("photos", "--out", "c.jsonl", "--prefix", "momo, ", "--append", "!").stdout == "c.jsonl\n"
    found = lines("c.jsonl")
    assert [line["image"] for line in found] == IMAGES
    assert all(line["caption"].startswith("momo, ") and line["caption"].endswith("!") for line in found)


def test_a_stopped_run_goes_on_after_its_last_whole_line(run, folder):
    run("photos", "--out", "whole.jsonl")
    whole = Path("whole.jsonl").read_bytes()
    third = [i for i, byte in enumerate(whole) if byte == ord("\n")][1]
    Path("cut.jsonl").write_bytes(whole[: third + 20])  # two lines, and part of the third
    assert "2 of 5 have their caption" in run("photos", "--out", "cut.jsonl", "--resume").stderr
    assert Path("cut.jsonl").read_bytes() == whole
    assert "exists already" in run("photos", "--out", "cut.jsonl", code=1).stderr
    assert Path("cut.jsonl").read_bytes() == whole
    run("photos/b.png", "--out", "cut.jsonl", "--overwrite")
    assert [line["image"] for line in lines("cut.jsonl")] == ["photos/b.png"]


def test_a_file_of_something_else_is_left_alone(run, folder):
    Path("thesis.txt").write_text("precious\nmore\n")
    assert "did not write" in run("photos", "--out", "thesis.txt", "--resume", code=1).stderr
    assert Path("thesis.txt").read_text() == "precious\nmore\n"


def test_text_files_stand_beside_their_images(run, folder):
    run("photos", "--sidecar", "txt")
    assert (folder / "more/c.txt").read_text().strip() and (folder / "a.txt").exists()
    assert (folder / "notes.txt").read_text() == "no image"
    (folder / "b.txt").write_text("mine")
    (folder / "e.txt").unlink()
    assert "b.txt exists already" in run("photos/b.png", "--sidecar", ".txt", code=1).stderr
    run("photos", "--sidecar", "txt", "--resume")
    assert (folder / "b.txt").read_text() == "mine" and (folder / "e.txt").exists()
    run("photos", "--sidecar", "txt", "--overwrite")
    assert (folder / "b.txt").read_text() != "mine"


def test_a_bad_file_stops_nothing_and_is_told_at_the_end(run, folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no jpeg")
    (folder / "more" / "cut.png").write_bytes((folder / "b.png").read_bytes()[:40])
    result = run("photos", "missing.png", "--out", "c.jsonl", code=3)
    assert [line["image"] for line in lines("c.jsonl")] == IMAGES
    assert "3 of 8 images have no caption:" in result.stderr
    assert all(name in result.stderr for name in ("broken.jpg", "cut.png", "missing.png: no such file"))
    again = run("photos", "--out", "c.jsonl", "--resume", code=3)
    assert "2 of 2 images have no caption:" in again.stderr and len(lines("c.jsonl")) == 5


def test_names_and_images_come_from_stdin(run, folder):
    names = b"photos/b.png\0photos/more/d.gif\0"
    told = run("--stdin0", "--json", input=names).stdout.splitlines()
    assert [json.loads(line)["image"] for line in told] == ["photos/b.png", "photos/more/d.gif"]
    assert run("-", input=(folder / "b.png").read_bytes()).stdout == run("photos/b.png").stdout
    assert "not an image" in run("-", input=b"hello", code=1).stderr
    assert "has no name" in run("-", "--out", "c.jsonl", input=b"hello", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give IMAGES"),
        (("photos", "--resume"), "go with --out or --sidecar"),
        (("photos", "--out", "a", "--sidecar", "txt"), "exclude each other"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, folder, arguments, says):
    assert says in run(*arguments, code=2).stderr


def test_a_folder_without_images_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no images" in run("empty", code=1).stderr


def test_two_processes_do_not_mix_in_one_file(run, folder):
    run("photos", "--out", "c.jsonl")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, time; f = open('c.jsonl', 'ab'); fcntl.flock(f, 2); print(flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        holder.stdout.readline()
        assert "another process" in run("photos", "--out", "c.jsonl", "--resume", code=1).stderr
    finally:
        holder.kill()
        holder.wait()
    run("photos", "--out", "c.jsonl", "--resume")


def test_killed_at_any_moment_it_goes_on_to_the_same_end(run, tiny, tmp_path):
    place, rng = tmp_path / "many", np.random.default_rng(0)
    place.mkdir()
    for number in range(150):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(place / f"{number:03}.png")
    run("many", "--out", "whole.jsonl")
    command = [
        sys.executable,
        "-m",
        "seed_edge",
        "caption",
        "many",
        "--out",
        "cut.jsonl",
        "--resume",
        "-q",
        "--bundle",
        str(tiny),
    ]
    killed, at = 0, []
    for wait in (0.1, *np.random.default_rng(1).uniform(0.3, 0.6, 9)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        at.append(Path("cut.jsonl").read_bytes().count(b"\n") if Path("cut.jsonl").exists() else 0)
    assert killed and at == sorted(at)  # finished work is never lost
    run("many", "--out", "cut.jsonl", "--resume")
    assert Path("cut.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert sorted(os.listdir()) == ["cut.jsonl", "many", "whole.jsonl"]


def test_progress_tells_rate_and_time_left(monkeypatch):
    from seed_edge.commands import captions

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen, now = Terminal(), iter([0.0, 2.0, 4.0])
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(captions.time, "monotonic", lambda: next(now))
    pace = captions.Pace(7202, quiet=False)
    pace.step()
    pace.step()
    assert "2/7,202  0.5/s  4:00:00 left" in screen.getvalue()
