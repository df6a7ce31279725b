import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from seed_edge.cli import cli
from seed_edge.commands.codes_input import parse_codes
from seed_edge.commands.common import Bytes
from seed_edge.errors import CodesError


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """Run a command in an empty folder, on the tiny bundle."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, bundle=tiny, **options):
        extra = ["--bundle", str(bundle), "--device", "cpu"] if bundle else []
        return CliRunner().invoke(cli, [*map(str, arguments), *extra], **options)

    return call


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    image = Image.new("RGB", (60, 60), "red")
    image.paste("blue", (30, 0, 60, 30))
    image.save(path)
    return path


def failed(result, words):
    """One line that names the fault, exit code 1, no traceback, nothing on stdout."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and words in errors[0], result.stderr
    return result


def commands(group=cli, path=()):
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_has_help(path):
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0
    assert "Usage: " in result.stdout and len(result.stdout.splitlines()) > 4


def test_encode_decode_round_trip_through_files(run, photo):
    encoded = run("encode", photo, "--json")
    assert json.loads(encoded.stdout) == {"image": str(photo), "codes": [4, 1, 4, 4]}
    Path("codes.json").write_text(encoded.stdout)
    result = run("decode", "codes.json", "-o", "again.png")
    assert result.stdout == "again.png\n"
    assert Image.open("again.png").getpixel((12, 2)) == (0, 0, 255)


def test_encode_prints_one_line_per_image_and_decode_reads_it_from_stdin(run, photo):
    result = run("encode", photo, photo)
    assert result.stdout == "4 1 4 4\n4 1 4 4\n"
    assert run("decode", "-", "-o", "again.webp", input="4 1 4 4").exit_code == 0
    assert Image.open("again.webp").format == "WEBP"


def test_caption_prints_text_or_json(run, photo):
    text = run("caption", photo)
    assert text.exit_code == 0
    assert json.loads(run("caption", photo, "--json").stdout) == {
        "image": str(photo),
        "caption": text.stdout.rstrip("\n"),
    }


def test_draw_writes_an_image_and_prints_its_path(run):
    result = run("draw", "a red fox", "-o", "fox.png", "--seed", 7)
    assert result.stdout == "fox.png\n" and Image.open("fox.png").size == (16, 16)
    record = json.loads(run("draw", "a red fox", "-o", "fox2.png", "--seed", 7, "--json").stdout)
    assert record["seed"] == 7 and record["prompt"] == "a red fox" and len(record["codes"]) == 4
    assert Path("fox.png").read_bytes() == Path("fox2.png").read_bytes()


def test_draw_without_a_name_never_overwrites(run):
    names = [run("draw", "A red/fox!", "--seed", 1).stdout.strip() for _ in range(2)]
    assert names == ["a-red-fox.png", "a-red-fox-2.png"]


def test_draw_without_a_seed_prints_the_random_one(run):
    result = run("draw", "a house", "-o", "a.png")
    seed = result.stderr.split("seed: ")[1].split()[0]
    run("draw", "a house", "-o", "b.png", "--seed", seed)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_temperature_zero_needs_no_seed(run):
    for name, seed in (("a.png", 1), ("b.png", 2)):
        run("draw", "a house", "-o", name, "--seed", seed, "--temperature", 0, "--no-metadata")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_notes_go_to_stderr_and_quiet_drops_them(run, photo, tiny):
    loud = CliRunner().invoke(cli, ["encode", str(photo), "--bundle", str(tiny), "-v"])
    assert loud.stderr.startswith("device: ") and len(loud.stderr.splitlines()) > 1
    assert CliRunner().invoke(cli, ["encode", str(photo), "--bundle", str(tiny)]).stderr == ""
    assert (
        "seed: "
        in CliRunner()
        .invoke(cli, ["draw", "x", "-o", str(photo.with_name("x.png")), "--bundle", str(tiny)])
        .stderr
    )
    assert (
        CliRunner()
        .invoke(cli, ["draw", "x", "-o", str(photo.with_name("y.png")), "--bundle", str(tiny), "-q"])
        .stderr
        == ""
    )


def test_unreadable_images_are_one_line_errors(run, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("text.jpg", "empty.jpg"):
        failed(run("caption", name), f"{name}: not an image")
    failed(run("caption", "missing.jpg"), "missing.jpg: no such file")
    result = run("encode", ".")
    assert result.exit_code == 3 and "2 of 2 images were not encoded" in result.stderr and result.stdout == ""


def test_the_pixel_limit_is_adjustable(run, photo):
    failed(run("caption", photo, "--max-pixels", 3599), "over the limit of 3,599")
    assert run("caption", photo, "--max-pixels", 3600).exit_code == 0


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("nowhere/fox.png", "no such folder"),
        ("fox.tiff", ".png"),
        ("fox", ".png"),
    ],
)
def test_invalid_outputs_are_errors_before_any_work(run, output, words):
    before = sorted(Path().rglob("*"))
    failed(run("draw", "a fox", "-o", output, bundle="no-such-bundle"), words)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.skipif(os.name == "nt", reason="permissions work differently on Windows")
def test_a_folder_that_cannot_be_written_is_a_one_line_error(run, monkeypatch):
    Path("locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")
    failed(run("draw", "a fox", "-o", "locked/fox.png"), "locked: the folder cannot be written")


def test_a_full_disk_leaves_no_incomplete_image(run, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    failed(run("draw", "a fox", "-o", "fox.png"), "fox.png cannot be written (No space left on device)")
    assert list(Path().iterdir()) == []


def test_invalid_prompts_are_one_line_errors(run):
    failed(run("draw", "", "-o", "x.png"), "the prompt is empty")
    failed(run("draw", "fox " * 500, "-o", "x.png"), "shorten it")
    assert not Path("x.png").exists()


@pytest.mark.parametrize("prompt", ["🦊", "여우 한 마리", "<img_00001>", "</s>"])
def test_odd_prompts_draw(run, prompt):
    assert run("draw", prompt, "-o", "x.png", "--seed", 1).exit_code == 0


def test_an_unknown_bundle_or_device_is_a_one_line_error(run, photo, tiny):
    failed(run("caption", photo, bundle="nowhere"), "nowhere: no such bundle")
    result = CliRunner().invoke(cli, ["caption", str(photo), "--bundle", str(tiny), "--device", "tpu"])
    assert result.exit_code == 2 and "'tpu' is not one of 'auto', 'cpu', 'cuda'" in result.stderr


@pytest.mark.parametrize(
    "text", ["", "{}", "hello", '{"codes": null}', '{"codes": [1.5]}', "[[1]]", "[true]", "1 x 3", "null"]
)
def test_a_file_without_codes_is_an_error(text):
    with pytest.raises(CodesError, match="holds no codes"):
        parse_codes(text, "codes.json")


def test_unreadable_codes_are_one_line_errors(run):
    Path("binary").write_bytes(bytes(range(256)))
    Path("large").write_bytes(b"1 " * 600_000)
    failed(
        run("decode", "nothing.json", "-o", "x.png"),
        "nothing.json cannot be read (No such file or directory)",
    )
    failed(run("decode", "binary", "-o", "x.png"), "binary is not a text file")
    failed(run("decode", "large", "-o", "x.png"), "large is over")
    failed(run("decode", ".", "-o", "x.png"), "cannot be read")


def test_a_full_disk_and_missing_folders_are_one_line_errors(run, monkeypatch, tmp_path):
    from seed_edge.runtime.pipeline import SeedEdge

    def full(*_args, **_options):
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr(SeedEdge, "load", full)
    failed(run("draw", "a fox", "-o", "x.png"), "/somewhere: No space left on device")


def test_invalid_codes_are_one_line_errors(run):
    failed(run("decode", "-", "-o", "x.png", input="1 2 3"), "4 integers")
    failed(run("decode", "-", "-o", "x.png", input="1 2 3 99"), "[0, 8)")
    assert not Path("x.png").exists()


def test_the_module_runs_as_a_program_and_help_is_quick():
    result = subprocess.run([sys.executable, "-m", "seed_edge", "--version"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("seed-edge, version ")


def test_the_error_of_a_missing_extra_has_the_install_command(run, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("export", "--ckpt", "run", "--out", "out", bundle=None)
    assert result.exit_code == 1
    assert (
        "export` needs torch" in result.stderr
        and 'pip install ".[export]" in the source folder' in result.stderr
    )


def test_diffusion_options_are_errors_for_a_bundle_without_diffusion(run):
    failed(run("draw", "a fox", "-o", "x.png", "--steps", 5), "draws in one pass")
    failed(run("decode", "-", "-o", "x.png", "--guidance", 2, input="1 2 3 4"), "draws in one pass")


def test_verify_repeats_the_self_test_without_torch(tiny, tmp_path):
    result = CliRunner().invoke(cli, ["verify", str(tiny)])
    assert result.exit_code == 0 and "hashes equal; self-test: 100% of codes equal" in result.stdout
    shutil.copytree(tiny, tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["self_test"]["codes"] = [(code + 1) % 8 for code in manifest["self_test"]["codes"]]
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    failed(CliRunner().invoke(cli, ["verify", str(tmp_path / "b")]), "of the self-test's codes are equal")
    del manifest["self_test"]
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    failed(CliRunner().invoke(cli, ["verify", str(tmp_path / "b")]), "without a self-test")


def test_verbose_prints_the_memory_plan_and_opened_parts(run, photo):
    told = run("caption", photo, "--low-memory", "-v").stderr
    for words in (
        "encoder.onnx: ",
        "one is open at a time",
        "opening encoder.onnx",
        "closing encoder.onnx to make room for",
    ):
        assert words in told
    assert "opening" not in run("caption", photo).stderr


@pytest.mark.parametrize(
    ("text", "count"),
    [("6G", 6 * 10**9), ("500M", 5 * 10**8), ("1.5gb", 15 * 10**8), ("2GiB", 2 << 30), ("1000", 1000)],
)
def test_sizes_with_and_without_units(text, count):
    assert Bytes().convert(text, None, None) == count


def test_an_invalid_or_too_low_memory_limit_is_an_error(run, photo):
    odd = run("caption", photo, "--memory-limit", "lots")
    assert odd.exit_code == 2 and "'lots' is not a size; write it as 6G" in odd.stderr
    failed(run("caption", photo, "--memory-limit", "50M"), "50 MB are allowed; raise --memory-limit")
