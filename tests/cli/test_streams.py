"""Standard input and output, lists of files, and JSON on stderr."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from seed_edge.cli import cli


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words, code=0, bundle=True, **options):
        told = CliRunner().invoke(
            cli, [*map(str, words), *(["--bundle", str(tiny)] if bundle else [])], **options
        )
        assert told.exit_code == code, told.output
        return told

    return call


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "white")):
        Image.new("RGB", (20, 20), colour).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def records(told):
    return [json.loads(line) for line in told.stdout.splitlines()]


def test_encode_reads_an_image_from_stdin(run, photos):
    data = (photos / "a.png").read_bytes()
    assert records(run("encode", "-", "--json", input=data)) == [
        {"image": "-", "codes": records(run("encode", "photos/a.png", "--json"))[0]["codes"]}
    ]


def test_encode_takes_folders_and_lists_of_files(run, photos):
    whole = records(run("encode", "photos", "--json"))
    assert [Path(each["image"]).name for each in whole] == ["a.png", "b.png", "c.png"]
    Path("names").write_text("photos/a.png\n\nphotos/b.png\nphotos/c.png\n")
    assert records(run("encode", "--files-from", "names", "--json")) == whole
    assert records(run("encode", "--files-from", "-", "--json", input="photos/a.png\n")) == whole[:1]
    captions = run("caption", "--files-from", "names").stdout.splitlines()
    assert captions == run("caption", "photos").stdout.splitlines() and len(captions) == 3


@pytest.mark.parametrize("command", ["encode", "caption"])
def test_encode_continues_after_an_unreadable_file(run, photos, command):
    (photos / "b.png").write_text("no image")
    told = run(command, "photos", "--json", code=3)
    assert [Path(each["image"]).name for each in records(told)] == ["a.png", "c.png"]
    assert "1 of 3 images" in told.stderr and "b.png" in told.stderr
    run(command, "photos/b.png", code=1)


def test_an_empty_list_of_files_is_an_error(run, photos):
    Path("names").write_text("\n")
    assert "holds no file names" in run("encode", "--files-from", "names", code=1).stderr
    assert "--files-from" in run("encode", code=2).stderr


def test_decode_reads_the_lines_of_encode(run, photos):
    lines = run("encode", "photos", "--json").stdout
    told = run("decode", "-", "-o", "out.png", input=lines)
    assert told.stdout.split() == ["out-1.png", "out-2.png", "out-3.png"]
    for name, number in (("a", 1), ("b", 2), ("c", 3)):
        assert Image.open(f"out-{number}.png").getpixel((3, 3)) == Image.open(
            photos / f"{name}.png"
        ).getpixel((3, 3))
    assert "stdout takes one image" in run("decode", "-", "-o", "-", input=lines, code=2).stderr


def test_a_pipe_from_stdin_to_stdout(photos, tiny):
    command = [sys.executable, "-m", "seed_edge"]
    codes = subprocess.run(
        [*command, "encode", "-", "--bundle", str(tiny)],
        input=(photos / "a.png").read_bytes(),
        capture_output=True,
        check=True,
    )
    image = subprocess.run(
        [*command, "decode", "-", "-o", "-", "--bundle", str(tiny)],
        input=codes.stdout,
        capture_output=True,
        check=True,
    )
    assert Image.open(io.BytesIO(image.stdout)).getpixel((3, 3)) == (255, 0, 0)


def test_draw_creates_the_output_folder(run):
    Path("prompts").write_text("a house\na fox\n")
    run("draw", "--prompts", "prompts", "-o", "made", "-s", 1)
    assert sorted(path.name for path in Path("made").iterdir()) == ["a-fox.png", "a-house.png"]
    run("draw", "a fox", "-o", "new/", "-s", 1)
    run("draw", "a fox", "-o", "new/", "-s", 2)
    assert sorted(path.name for path in Path("new").iterdir()) == ["a-fox-2.png", "a-fox.png"]
    run("draw", "--from", "new/a-fox.png", "-o", "again/")
    assert Path("again/a-fox.png").read_bytes() == Path("new/a-fox.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "bundle"),
    [
        (("draw", "a house", "-o", "x.png"), 0, True), (("caption", "photos"), 3, True), (("caption", "none.png"), 1, True),
        (("draw",), 2, True), (("nothing",), 2, False), (("bundles", "path", "none"), 1, False), (("--unknown",), 2, False),
    ],
)  # fmt: skip
def test_every_line_on_stderr_is_json_with_log_json(run, photos, words, code, bundle):
    (photos / "b.png").write_text("no image")
    told = run("--log-json", *words, code=code, bundle=bundle)
    lines = [json.loads(line) for line in told.stderr.splitlines()]
    assert lines and all(line.keys() == {"time", "level", "message"} for line in lines)
    assert (lines[-1]["level"] == "error") == (code != 0)


def test_bundles_list_shows_the_added_bundle_and_not_a_folder_of_its_name(run, tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("SEED_EDGE_HOME", str(tmp_path / "home"))
    run("bundles", "add", tiny, "--name", "small", bundle=False)
    Path("small").mkdir()
    names = {each["name"]: each for each in records(run("bundles", "list", "--json", bundle=False))}
    assert "error" not in names["small"] and names["small"]["path"] == str(
        tmp_path / "home" / "bundles" / "small"
    )


def test_inspect_prints_keys_as_they_are_in_json(run, tiny):
    told = run("inspect", tiny, bundle=False).stdout
    keys = {line.split(":")[0] for line in told.splitlines() if line[:1] != " "}
    assert (
        {"able_to", "output_size"}
        <= keys
        <= set(json.loads(run("inspect", tiny, "--json", bundle=False).stdout))
    )
