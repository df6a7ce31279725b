"""Kills, full disks and folders nobody may write to: nothing half stands under its final name, and one line says what happened."""

import os
import subprocess
import sys

import pytest
from faults import command, killed, seconds_of, whole_or_absent
from PIL import Image

from seed_edge.atomic import TEMPORARY

FULL = """
import resource, signal, sys
from seed_edge.cli import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
cli(sys.argv[2:])
"""
"""A command in a process whose files cannot grow past some bytes, which fails where a full disk does: in `write`."""


def full(size, *arguments, cwd):
    return subprocess.run(
        [sys.executable, "-c", FULL, str(size), *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )


def test_a_killed_draw_leaves_a_complete_image_or_none(tiny, tmp_path):
    words = command("draw", "a house", "--bundle", tiny, "-o", "out.png", "-q")
    longest = seconds_of(words, tmp_path)
    (tmp_path / "out.png").unlink()
    assert killed(words, tmp_path, 10, longest, lambda: whole_or_absent(tmp_path / "out.png"))
    subprocess.run(words, cwd=tmp_path, check=True)  # whatever was left does not stand in the way
    assert Image.open(tmp_path / "out.png").size == (16, 16)
    assert [name for name in os.listdir(tmp_path) if not TEMPORARY.fullmatch(name)] == ["out.png"]


def test_an_existing_image_stays_until_the_new_one_is_complete(tiny, tmp_path):
    (tmp_path / "out.png").write_bytes(b"something dear")
    result = full(
        100, "draw", "a house", "--bundle", tiny, "-o", "out.png", "-q", "--overwrite", cwd=tmp_path
    )
    assert (
        result.returncode == 1
        and "File too large" in result.stderr
        and (tmp_path / "out.png").read_bytes() == b"something dear"
    )
    assert os.listdir(tmp_path) == ["out.png"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("draw", "a house", "-o", "out.png"),
        ("draw", "a house", "-n", "4", "--grid", "-o", "out.png"),
        ("decode", "codes.json", "-o", "out.png"),
        ("reconstruct", "photo.png", "-o", "out.png"),
    ],
)
def test_a_full_disk_is_a_one_line_error_and_leaves_no_files(tiny, tmp_path, arguments):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "photo.png")
    (tmp_path / "codes.json").write_text("[0, 1, 2, 3]")
    before = set(os.listdir(tmp_path))
    result = full(100, *arguments, "--bundle", tiny, "-q", cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and "out" in result.stderr
    assert set(os.listdir(tmp_path)) == before


def test_captions_written_before_the_disk_was_full_are_saved(tiny, tmp_path):
    (tmp_path / "many").mkdir()
    for number in range(40):
        Image.new("RGB", (16, 16), (6 * number, 0, 0)).save(tmp_path / "many" / f"{number:02}.png")
    whole = subprocess.run(
        command("caption", "many", "--out", "whole.jsonl", "-q", "--bundle", tiny),
        cwd=tmp_path,
        capture_output=True,
    )
    assert whole.returncode == 0
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    room = sum(map(len, lines[:20])) + 5
    result = full(room, "caption", "many", "--out", "cut.jsonl", "-q", "--bundle", tiny, cwd=tmp_path)
    assert (
        result.returncode == 1
        and "Traceback" not in result.stderr
        and len(result.stderr.strip().splitlines()) == 1
    )
    assert (tmp_path / "cut.jsonl").read_bytes().startswith(b"".join(lines[:15]))
    again = command("caption", "many", "--out", "cut.jsonl", "--resume", "-q", "--bundle", tiny)
    subprocess.run(again, cwd=tmp_path, check=True)
    assert (tmp_path / "cut.jsonl").read_bytes() == b"".join(lines)


@pytest.mark.parametrize("target", ["missing/out.png", "file/out.png"])
def test_an_output_that_cannot_be_written_is_an_error_before_any_work(tiny, tmp_path, target):
    (tmp_path / "file").write_text("no folder")
    words = command("draw", "a house", "--bundle", tiny, "-o", target, "-q")
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode in (1, 2) and "Traceback" not in result.stderr
    assert target.split("/")[0] in result.stderr
