"""Captions of whole folders: what comes out, what is gone on with, what stops nothing."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
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


def test_captions_of_a_folder_equal_those_of_its_files(run, folder):
    told = [line.split("\t") for line in run("photos").stdout.splitlines()]
    assert [name for name, _ in told] == IMAGES
    for name, text in told:
        assert " ".join(run(name).stdout.split()) == text
    assert [json.loads(line)["image"] for line in run("photos/more", "photos/b.png", "--json").stdout.splitlines()] == [
        *IMAGES[3:], "photos/b.png"
    ]  # fmt: skip


def test_captions_in_a_file_have_prefix_and_suffix(run, folder):
    assert run("photos", "--out", "c.jsonl", "--prefix", "momo, ", "--append", "!").stdout == "c.jsonl\n"
    found = lines("c.jsonl")
    assert [line["image"] for line in found] == IMAGES
    assert all(line["caption"].startswith("momo, ") and line["caption"].endswith("!") for line in found)


def test_resume_continues_after_the_last_complete_line(run, folder):
    run("photos", "--out", "whole.jsonl")
    whole = Path("whole.jsonl").read_bytes()
    third = [i for i, byte in enumerate(whole) if byte == ord("\n")][1]
    Path("cut.jsonl").write_bytes(whole[: third + 20])  # two lines, and part of the third
    assert "skipped 2 of 5 images" in run("photos", "--out", "cut.jsonl", "--resume").stderr
    assert Path("cut.jsonl").read_bytes() == whole
    assert "already exists" in run("photos", "--out", "cut.jsonl", code=1).stderr
    assert Path("cut.jsonl").read_bytes() == whole
    run("photos/b.png", "--out", "cut.jsonl", "--overwrite")
    assert [line["image"] for line in lines("cut.jsonl")] == ["photos/b.png"]


def test_a_file_without_captions_is_not_changed(run, folder):
    Path("thesis.txt").write_text("precious\nmore\n")
    assert "did not write" in run("photos", "--out", "thesis.txt", "--resume", code=1).stderr
    assert Path("thesis.txt").read_text() == "precious\nmore\n"


def test_sidecars_are_written_next_to_their_images(run, folder):
    run("photos", "--sidecar", "txt")
    assert (folder / "more/c.txt").read_text().strip() and (folder / "a.txt").exists()
    assert (folder / "notes.txt").read_text() == "no image"
    (folder / "b.txt").write_text("mine")
    (folder / "e.txt").unlink()
    assert "b.txt already exists" in run("photos/b.png", "--sidecar", ".txt", code=1).stderr
    run("photos", "--sidecar", "txt", "--resume")
    assert (folder / "b.txt").read_text() == "mine" and (folder / "e.txt").exists()
    run("photos", "--sidecar", "txt", "--overwrite")
    assert (folder / "b.txt").read_text() != "mine"


def test_files_that_fail_are_listed_at_the_end(run, folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no jpeg")
    (folder / "more" / "cut.png").write_bytes((folder / "b.png").read_bytes()[:40])
    result = run("photos", "missing.png", "--out", "c.jsonl", code=3)
    assert [line["image"] for line in lines("c.jsonl")] == IMAGES
    assert "3 of 8 images were not captioned:" in result.stderr
    assert all(name in result.stderr for name in ("broken.jpg", "cut.png", "missing.png: no such file"))
    again = run("photos", "--out", "c.jsonl", "--resume", code=3)
    assert "2 of 2 images were not captioned:" in again.stderr and len(lines("c.jsonl")) == 5


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
        (("photos", "--resume"), "need --output or --sidecar"),
        (("photos", "--out", "a", "--sidecar", "txt"), "exclude each other"),
        (("photos", "--out", "a", "--resume", "--overwrite"), "exclude each other"),
        (("photos", "--out", "a", "--full-names"), "needs --sidecar"),
    ],
)
def test_exclusive_options_of_caption_are_usage_errors(run, folder, arguments, says):
    assert says in run(*arguments, code=2).stderr


def test_a_folder_without_images_is_an_error(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no images" in run("empty", code=1).stderr


def test_two_processes_cannot_write_the_same_file(run, folder):
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


def test_resume_after_a_kill_gives_the_same_captions(run, tiny, tmp_path):
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


def test_progress_shows_rate_and_time_left(monkeypatch):
    from seed_edge.commands import caption_output

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen, now = Terminal(), iter([0.0, 2.0, 4.0])
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(caption_output.time, "monotonic", lambda: next(now))
    progress = caption_output.FileProgress(7202, quiet=False)
    progress.step()
    progress.step()
    assert "2/7,202  0.5/s  4:00:00 left" in screen.getvalue()


# ---- no file of the user's is lost -------------------------------------------------------------------------------


def content(place):
    """Every file below a folder, links by what they link to."""
    return {
        path.relative_to(place): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in place.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize(
    "ending",
    [
        *[
            "",
            ".",
            "..",
            "...",
            "a/b",
            "txt/",
            "/txt",
            "a\0b",
            "jpg",
            ".JPG",
            "png",
            "jfif",
            "heic",
            "cr2",
            "xmp",
            "mov",
            "mp4",
        ],
        *[
            "psd",
            "aae",
            "dng",
            "json",
            "py",
            "toml",
            "bak",
            "txt.jpg",
            "txt.",
            ".txt..txt",
            "a b.txt",
            "gguf",
            "db",
            "zip",
        ],
    ],
)
def test_an_invalid_sidecar_ending_is_a_usage_error(run, folder, ending):
    (folder / "b.json").write_text("mine")
    before = content(folder)
    assert (
        "is not an ending of sidecar files"
        in run("photos", "--sidecar", ending, "--overwrite", code=2).stderr
    )
    assert content(folder) == before


@pytest.mark.parametrize("ending", ["txt", ".txt", "TXT", "caption", "en.txt", "model-2_b.txt", "md", "tags"])
def test_valid_sidecar_endings(run, folder, ending):
    run("photos", "--sidecar", ending)
    assert (folder / f"b.{ending.removeprefix('.')}").read_text()


def test_images_of_one_stem_do_not_share_a_sidecar(run, folder):
    for name in ("b.webp", "b.gif"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    result = run("photos", "--sidecar", "txt", code=3)
    assert result.stderr.count("b.txt is the sidecar of photos/b.gif; use --full-names") == 2
    assert "photos/b.png: photos/b.txt" in result.stderr and "photos/b.webp: photos/b.txt" in result.stderr
    first = (folder / "b.txt").read_bytes()
    for option in ("--resume", "--overwrite"):
        assert "2 of" in run("photos", "--sidecar", "txt", option, code=3).stderr
        assert (folder / "b.txt").read_bytes() == first
    run("photos", "--sidecar", "txt", "--full-names")
    assert (
        (folder / "b.png.txt").exists()
        and (folder / "b.webp.txt").exists()
        and (folder / "more/c.webp.txt").exists()
    )


def test_an_image_given_twice_gets_one_sidecar(run, folder):
    run("photos/b.png", "photos/b.png", "photos", "--sidecar", "txt")
    assert (folder / "b.txt").exists()


def test_a_raw_file_does_not_own_the_sidecar_of_a_photo(run, folder):
    (folder / "a.cr2").write_bytes(b"II*\0\x10\0\0\0CR\2\0" + bytes(100))
    result = run("photos", "--sidecar", "txt", code=3)
    assert (folder / "a.txt").exists() and "1 of 6 images" in result.stderr and "a.cr2" in result.stderr


@pytest.mark.parametrize(
    "kind", ["link", "folder", "binary", "long", "latin-1", "image", "hard link to an image", "settings"]
)
def test_overwrite_does_not_replace_files_that_cannot_be_captions(run, folder, tmp_path, kind, monkeypatch):
    beside = folder / "b.txt"
    if kind == "link":
        (tmp_path / "mine").write_text("dear")
        beside.symlink_to(tmp_path / "mine")
    elif kind == "folder":
        beside.mkdir()
        (beside / "mine").write_text("dear")
    elif kind == "image":
        Image.new("RGB", (8, 8), "red").save(beside, "PNG")
    elif kind == "hard link to an image":
        os.link(folder / "e.bmp", beside)
    elif kind == "settings":
        beside.write_text("[caption]\nbeams = 2\n")
        monkeypatch.setenv("SEED_EDGE_CONFIG", str(beside))
    else:
        beside.write_bytes({"binary": b"a\0b", "long": b"a" * 65_537, "latin-1": b"caf\xe9"}[kind])
    before = content(folder)
    result = run("photos", "--sidecar", "txt", "--overwrite", code=3)
    after = content(folder)
    assert "1 of 5 images" in result.stderr and "b.txt" in result.stderr
    assert {path: after[path] for path in before} == before
    assert {path.name for path in after if path not in before} == {"a.txt", "c.txt", "d.txt", "e.txt"}


def test_overwrite_replaces_a_sidecar_but_not_its_hard_links(run, folder, tmp_path):
    (folder / "b.txt").write_text("old")
    os.link(folder / "b.txt", tmp_path / "kept.txt")
    run("photos/b.png", "--sidecar", "txt", "--overwrite")
    assert (folder / "b.txt").read_text() != "old" and (tmp_path / "kept.txt").read_text() == "old"


def test_a_sidecar_name_that_is_too_long_fails_only_its_image(run, folder):
    long = "n" * 244 + ".png"
    (folder / "b.png").rename(folder / long)
    for option in ((), ("--resume",)):
        result = run("photos", "--sidecar", "description.txt", *option, code=3)
        assert "1 of" in result.stderr and "too long" in result.stderr
        assert sorted(path.name for path in folder.rglob("*.description.txt")) == [
            f"{c}.description.txt" for c in "acde"
        ]
    (folder / long).rename(folder / ("n" * 251 + ".png"))
    run("photos", "--sidecar", "txt")


UNPRIVILEGED = """
import os, pathlib, sys
from seed_edge.cli import cli
# The interpreter's own modules may be readable by root alone: every one that captioning imports is imported before.
cli(["caption", "photos", "--sidecar", "caption", *sys.argv[2:]], standalone_mode=False)
for path in pathlib.Path("photos").rglob("*.caption"):
    path.unlink()
os.seteuid(65534)
cli(["caption", *sys.argv[1].split(), *sys.argv[2:]])
"""


def unprivileged(tiny, place, *arguments):
    """A command by a user whom permissions bind."""
    os.chmod(place, 0o755)
    words = [
        sys.executable,
        "-c",
        UNPRIVILEGED,
        " ".join(arguments),
        "--bundle",
        str(tiny),
        "--device",
        "cpu",
    ]
    home = os.environ | {"SEED_EDGE_HOME": str(place / "home")}
    return subprocess.run(words, cwd=place, env=home, capture_output=True, text=True)


@pytest.fixture
def reachable(tiny, folder, tmp_path):
    """The folder of images where any user reaches it, and a bundle there."""
    if os.geteuid() != 0:
        pytest.skip("needs to be root to become somebody else")
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    shutil.copytree(folder, place / "photos")
    shutil.copytree(tiny, place / "tiny")
    (place / "photos" / "locked").mkdir()
    shutil.copy(folder / "b.png", place / "photos" / "locked")
    for path in place.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o644)
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("bits", [0o000, 0o555, 0o311])
def test_an_unreadable_folder_does_not_stop_the_run(reachable, bits):
    (reachable / "photos" / "locked").chmod(bits)
    result = unprivileged(reachable / "tiny", reachable, "photos", "--sidecar", "txt")
    assert result.returncode == 3 and "Traceback" not in result.stderr, result.stderr
    assert "1 of 6 images" in result.stderr and "locked" in result.stderr
    assert {path.name for path in reachable.rglob("*.txt")} == {
        "a.txt",
        "b.txt",
        "c.txt",
        "d.txt",
        "e.txt",
        "notes.txt",
    }


def test_an_unreadable_image_does_not_stop_the_run(reachable):
    (reachable / "photos" / "locked").chmod(0)
    result = unprivileged(reachable / "tiny", reachable, "photos/locked/b.png", "photos/b.png")
    assert result.returncode == 3 and "photos/b.png\t" in result.stdout and "1 of 2 images" in result.stderr


def test_link_loops_pipes_sockets_and_vanished_files_do_not_stop_the_run(run, folder, monkeypatch):
    (folder / "round.png").symlink_to("round.png")
    (folder / "more" / "up").symlink_to("..")
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.unknown")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as opened:
        monkeypatch.chdir(folder)
        opened.bind("socket.png")
        monkeypatch.chdir("..")
        (folder / "gone.png").symlink_to("nowhere")
        result = run("photos", "--json", code=3)
    assert [json.loads(line)["image"] for line in result.stdout.splitlines()] == IMAGES
    for name in ("round.png", "pipe.jpg: a named pipe", "socket.png: a socket", "gone.png: no such file"):
        assert name in result.stderr
    assert "4 of 9 images" in result.stderr and "links to folders 1" in result.stderr


def test_a_folder_that_vanishes_during_the_search_is_reported(run, folder, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("more"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = run("photos", "--json", code=3)
    assert len(result.stdout.splitlines()) == 3 and "photos/more: the folder cannot be read" in result.stderr


@pytest.mark.parametrize("name", ["x.jfif", "x.JPE", "x.TIF", "x.DIB", "x.PNG", "x.apng"])
def test_image_endings_are_found_in_any_case(run, folder, name):
    Image.new("RGB", (8, 8), "red").save(folder / name, "PNG")
    assert f"photos/{name}" in run("photos").stdout


@pytest.mark.parametrize("name", ["x.HEIC", "x.jxl", "x.nef", "x.psd"])
def test_unsupported_image_formats_are_reported(run, folder, name):
    (folder / name).write_bytes(b"content of no format")
    result = run("photos", code=3)
    assert "1 of 6 images" in result.stderr and f"photos/{name}" in result.stderr


def test_files_that_are_not_images_are_counted(run, folder):
    (folder / "LICENSE").write_text("x")
    (folder / "more" / "b.TXT").write_text("x")
    assert "skipped files that are not images, by ending: .txt 2, no ending 1" in run("photos").stderr
    assert "skipped" not in run("photos", "-q").stderr


# ---- --out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["same", "other spelling", "hard link", "link", "settings", "bundle", "in the bundle"]
)
@pytest.mark.parametrize("option", [None, "--overwrite", "--resume"])
def test_an_input_is_never_the_output(run, folder, tiny, tmp_path, monkeypatch, how, option):
    out = Path("other.jsonl")
    if how == "same":
        out = Path("photos/b.png")
    elif how == "other spelling":
        out = Path("photos/more/../b.png")
    elif how == "hard link":
        os.link("photos/b.png", out)
    elif how == "link":
        out.symlink_to("photos/b.png")
    elif how == "settings":
        out.write_text("[caption]\nbeams = 2\n")
        monkeypatch.setenv("SEED_EDGE_CONFIG", str(out))
    elif how == "bundle":
        out.symlink_to(tiny / "manifest.json")
    else:
        out = tiny / "captions.jsonl"
    before, bundle = content(tmp_path), content(tiny)
    result = run("photos", "--out", out, *([option] if option else []), code=1)
    assert "choose another --out" in result.stderr and len(result.stderr.strip().splitlines()[-1:]) == 1
    assert content(tmp_path) == before and content(tiny) == bundle


OURS = b'{"image": "photos/a.JPG", "caption": "a"}\n'


@pytest.mark.parametrize(
    "data",
    [
        b"no line end",
        b"{",
        b'{"image"',
        b'{"image": "a", "caption": "b", "more": 1}',
        b'{"images": "a", "captions": ["b"]}',
        b"\x7fELF\0\0",
        b"\xef\xbb\xbf" + OURS,
        OURS + b"notes",
        OURS + b'{"a": 1}',
        OURS + b"\n",
        OURS + b'{"image": 3, "caption": "b"}\n',
        OURS + b'{"image": "b", "image": "c", "caption": "b"}',
        OURS + b'{"image": "b\xff',
        OURS + b'{"image": "b", "caption": "c", ',
        OURS + b'{"image": "b" ',
        OURS + b'{"image":"b", "cap',
        OURS + b'{"image": "b\tc',
        OURS + b'{"image": "' + b"x" * (1 << 20),
        b"[" * 100_000,
        b"x" * (3 << 20),
    ],
    ids=lambda data: repr(data[:60]),
)
def test_resume_does_not_truncate_a_file_with_other_content(run, folder, data):
    Path("mine").write_bytes(data)
    assert "did not write" in run("photos", "--out", "mine", "--resume", code=1).stderr
    assert Path("mine").read_bytes() == data


def test_every_incomplete_last_line_can_be_resumed(run, folder):
    from seed_edge.commands.caption_output import MAX_LINE_BYTES, _is_partial_record
    from seed_edge.display import json_line

    name, caption = 'q"b\\s\x1b' + os.fsdecode(b"\xff") + "\N{HAMSTER FACE}", 'é "\n\u2028'
    line = json_line({"image": name, "caption": caption}).encode()
    assert len(line) < MAX_LINE_BYTES and not _is_partial_record(line, first=False)
    for end in range(len(line)):
        assert _is_partial_record(line[:end], first=False), line[:end]
        assert _is_partial_record(line[:end], first=True) == (end >= len('{"image": "')), line[:end]


def test_a_complete_last_line_without_newline_is_kept(run, folder):
    run("photos", "--out", "c.jsonl")
    whole = Path("c.jsonl").read_bytes().splitlines(keepends=True)
    mine = (
        json.dumps({"image": "photos/b.png", "caption": "mine"}).replace(" ", "  ").encode()
    )  # an editor's spaces
    Path("c.jsonl").write_bytes(whole[0] + mine)
    run("photos", "--out", "c.jsonl", "--resume")
    assert Path("c.jsonl").read_bytes() == b"".join([whole[0], mine, b"\n", *whole[2:]])
    Path("c.jsonl").write_bytes(b"")
    run("photos", "--out", "c.jsonl", "--resume")
    assert Path("c.jsonl").read_bytes() == b"".join(whole)


def test_file_names_of_any_bytes_are_printed_exactly(run, folder):
    names = [os.fsdecode(b"caf\xe9.png"), "tab\tline\n\x1b[31m.png", "\N{HAMSTER FACE}\u202e.png"]
    for name in names:
        shutil.copy(folder / "b.png", folder / name)
    run("photos", "--out", "c.jsonl")
    text = Path("c.jsonl").read_bytes().decode("utf-8")
    assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}
    assert {f"photos/{name}" for name in names} < {json.loads(line)["image"] for line in text.splitlines()}
    assert "skipped 8 of 8 images" in run("photos", "--out", "c.jsonl", "--resume").stderr
    assert Path("c.jsonl").read_bytes().decode() == text
    told = run("photos").stdout.splitlines()
    assert len(told) == 8 and all(
        line.count("\t") == 1 and line.replace("\t", "").isprintable() for line in told
    )


def test_overwrite_replaces_only_the_named_file(run, folder, tmp_path):
    Path("thesis").write_text("old")
    os.link("thesis", "kept")
    run("photos/b.png", "--out", "thesis", "--overwrite")
    assert len(lines("thesis")) == 1 and Path("kept").read_text() == "old"


@pytest.mark.parametrize("option", [None, "--overwrite", "--resume"])
def test_captions_go_to_stdout_pipes_and_devices(run, folder, option):
    extra = [option] if option else []
    told = [json.loads(line)["image"] for line in run("photos", "--out", "-", *extra).stdout.splitlines()]
    assert told == IMAGES and not Path("-").exists()
    assert run("photos", "--out", "/dev/null", *extra).stdout == "/dev/null\n"
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo("pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append(Path("pipe").read_bytes()))
    reader.start()
    run("photos", "--out", "pipe", *extra)
    reader.join(20)
    assert found[0].count(b"\n") == 5 and stat.S_ISFIFO(os.stat("pipe").st_mode)


def test_dev_stdout_is_stdout(tiny, folder, tmp_path):
    words = [
        sys.executable,
        "-m",
        "seed_edge",
        "caption",
        "photos",
        "--out",
        "/dev/stdout",
        "-q",
        "--bundle",
        str(tiny),
    ]
    with open(tmp_path / "told", "wb") as file:
        subprocess.run(words, cwd=tmp_path, stdout=file, check=True)
    assert [line["image"] for line in lines(tmp_path / "told")] == IMAGES


def test_a_folder_as_caption_file_is_an_error(run, folder):
    (folder.parent / "out").mkdir()
    for option in ((), ("--overwrite",), ("--resume",)):
        assert "is a folder" in run("photos", "--out", "out", *option, code=1).stderr


# ---- progress ----------------------------------------------------------------------------------------------------


def test_progress_is_a_line_every_30_seconds_without_a_terminal(monkeypatch):
    from seed_edge.commands import caption_output

    screen, now = io.StringIO(), iter([0.0, *range(10, 110, 10), 200.0, 300.0])
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(caption_output.time, "monotonic", lambda: next(now))
    progress = caption_output.FileProgress(20, quiet=False)
    for _ in range(10):
        progress.step()
        progress.clear()
    assert screen.getvalue().splitlines() == [
        f"{n}/20  0.1/s  {left} left" for n, left in ((3, "0:02:50"), (6, "0:02:20"), (9, "0:01:50"))
    ]
    caption_output.FileProgress(20, quiet=True).step()
    assert len(screen.getvalue().splitlines()) == 3


def test_results_and_progress_never_share_a_line(run, folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    from seed_edge.commands import caption, caption_output

    screen = Terminal()
    monkeypatch.setattr(caption_output.sys, "stderr", screen)
    monkeypatch.setattr(
        caption_output.click,
        "echo",
        lambda text="", err=False, nl=True, **_: screen.write(str(text) + "\n" * nl),
    )
    progress, sink = (
        caption_output.FileProgress(2, quiet=False),
        caption_output.StdoutSink(as_json=False, single=False),
    )
    made = [(Path("a.png"), "one"), (Path("b.png"), "two")]

    class Made:
        def __init__(self, path, caption):
            self.path, self.caption, self.error = path, caption, None

    monkeypatch.setattr(
        "seed_edge.runtime.batch.caption_files", lambda *_, **__: iter([Made(*each) for each in made])
    )
    assert caption.caption_to_sink(None, [path for path, _ in made], sink, "", "", False, False) == []
    shown = screen.getvalue()
    for result in ("a.png\tone\n", "b.png\ttwo\n"):
        assert shown[: shown.index(result)].endswith("\r\033[K")
    assert progress.rewritten
