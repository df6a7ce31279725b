"""Everything about drawing beyond one picture: several, from a file, from a picture, what files tell, edits."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from seed_edge.bundle import Bundle
from seed_edge.cli import cli
from seed_edge.errors import ImageError
from seed_edge.manifest import MANIFEST
from seed_edge.record import AI_MADE, Drawn, Record, bundle_hash, record_in, saving_options


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """Run a command in an empty folder; the last argument may be a bundle."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, bundle=tiny, fails=False, **options):
        extra = ["--bundle", str(bundle), "--device", "cpu"] if bundle else []
        result = CliRunner().invoke(cli, [*map(str, arguments), *extra], catch_exceptions=False, **options)
        assert (result.exit_code != 0) == fails, result.output
        return result

    return call


@pytest.fixture
def taught(tiny, tmp_path):
    """The tiny bundle, as if it had been taught to answer and to edit."""
    folder = tmp_path / "taught"
    shutil.copytree(tiny, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["language"]["prompts"] |= {"ask": "{bos}{images}{text}", "edit": "{bos}{images}{text}{boi}"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def photo(tmp_path):
    image = Image.new("RGB", (60, 60), "red")
    image.paste("blue", (30, 0, 60, 30))
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_several_pictures_count_their_seeds_up(run):
    told = run("draw", "a house", "-n", 3, "-o", "h.png", "--seed", 5).stdout.split()
    assert told == ["h-1.png", "h-2.png", "h-3.png"]
    assert [record_in(name).drawn[0].seed for name in told] == [5, 6, 7]
    run("draw", "a house", "-o", "alone.png", "--seed", 6)
    assert Path("h-2.png").read_bytes() == Path("alone.png").read_bytes()


def test_a_grid_is_one_picture_of_all_and_draws_again(run):
    line = json.loads(run("draw", "a house", "-n", 3, "--grid", "-o", "g.png", "--seed", 5, "--json").stdout)
    assert Image.open("g.png").size == (32, 32) and line["seed"] == [5, 6, 7] and len(line["codes"]) == 3
    run("draw", "a house", "-o", "second.png", "--seed", 6)
    assert Image.open("g.png").crop((16, 0, 32, 16)).tobytes() == Image.open("second.png").tobytes()
    run("draw", "--from", "g.png", "-o", "again.png")
    assert Path("again.png").read_bytes() == Path("g.png").read_bytes()


def test_prompts_come_from_a_file_or_from_stdin(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a house\n\n  a cat \na house\n")
    (tmp_path / "out").mkdir()
    told = run("draw", "--prompts", "prompts.txt", "-o", "out", "--seed", 1).stdout.split()
    assert told == ["out/a-house.png", "out/a-cat.png", "out/a-house-2.png"]
    assert Path(told[0]).read_bytes() == Path(told[2]).read_bytes()
    assert run("draw", "--prompts", "-", "--seed", 1, input="a dog\n").stdout == "a-dog.png\n"


def test_a_prompt_that_cannot_be_drawn_does_not_stop_the_others(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a house\n" + "long " * 200 + "\na cat\n")
    result = run("draw", "--prompts", "prompts.txt", "--seed", 1, fails=True)
    assert result.stdout.split() == ["a-house.png", "a-cat.png"]
    assert "was not drawn: the prompt has" in result.stderr and "1 of 3 prompts were not drawn" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "say what to draw"),
        (("a house", "--from", "x.png"), "say what to draw"),
        (("--prompts", "none.txt"), "none.txt cannot be read"),
        (("--prompts", "empty.txt"), "holds no prompts"),
        (("--prompts", "empty.txt", "-o", "nowhere"), "-o is a folder that exists"),
        (("--from", "none.png"), "no such file"),
        (("--from", "photo.png"), "does not say how it was made"),
        (("--from", "empty.txt"), "not an image"),
    ],
)
def test_what_cannot_be_drawn_says_why(run, photo, tmp_path, arguments, says):
    (tmp_path / "empty.txt").write_text("\n\n")
    assert says in run("draw", *arguments, fails=True).stderr


def test_negative_words_change_what_is_drawn(run):
    def drawn(name, *more):
        lines = run("draw", "a house", "-n", 8, "--seed", 3, "-o", f"{name}.png", "--json", *more).stdout.splitlines()
        return [json.loads(line)["codes"] for line in lines]

    none, cat, again, grass = (
        drawn("a"), drawn("b", "--negative", "a cat"), drawn("c", "--negative", "a cat"), drawn("d", "--negative", "green grass")
    )  # fmt: skip
    assert none != cat == again != grass
    assert record_in("b-1.png").negative == "a cat"
    run("draw", "--from", "b-1.png", "-o", "again.png")
    assert Path("again.png").read_bytes() == Path("b-1.png").read_bytes()


def test_it_is_drawn_as_often_as_asked_and_one_is_kept(run):
    def drawn(*more):
        hot = ("draw", "a house", "-n", 8, "--seed", 3, "--temperature", 5, "-o", "a.png", "--json")
        return [json.loads(line)["codes"] for line in run(*hot, *more).stdout.splitlines()]

    assert drawn() == drawn("--tries", 1) != drawn("--tries", 6) == drawn("--tries", 6)
    assert "17 is not in the range" in run("draw", "a house", "--tries", 17, fails=True).stderr


def test_a_size_is_that_of_the_file(run):
    run("draw", "a house", "--seed", 1, "--size", 40, "-o", "a.png")
    assert Image.open("a.png").size == (40, 40)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_file_tells_how_it_was_made_and_that_a_machine_did(run, tiny, name):
    run("draw", "a <red> & blue house", "--seed", 9, "-o", name)
    record = record_in(name)
    assert (record.prompt, record.drawn[0].seed, len(record.drawn[0].codes)) == ("a <red> & blue house", 9, 4)
    assert record.bundle == "tiny" and record.bundle_hash == bundle_hash(Bundle.open(tiny))
    image = Image.open(name)
    image.load()
    assert AI_MADE in str(image.info["xmp"])
    comment = image.info.get("parameters") or image.getexif().get_ifd(0x8769)[0x9286][8:].decode("utf-16-be")
    assert comment.startswith("a <red> & blue house\nSteps: 1, ") and "Seed: 9, Size: 16x16" in comment
    run("draw", "a house", "--seed", 9, "-o", f"bare-{name}", "--no-metadata")
    bare = Path(f"bare-{name}").read_bytes()
    assert AI_MADE.encode() in bare and b"house" not in bare
    with pytest.raises(ImageError, match="does not say how"):
        record_in(f"bare-{name}")


def test_a_picture_of_another_bundle_is_not_drawn_again(run, taught):
    run("draw", "a house", "--seed", 1, "-o", "a.png")
    assert "was drawn by the bundle tiny" in run("draw", "--from", "a.png", bundle=taught, fails=True).stderr


@pytest.mark.parametrize(
    "change", [lambda r: r | {"drawn": []}, lambda r: r | {"prompt": 3}, lambda r: r | {"more": 1}, lambda r: [1], lambda r: 0]
)
def test_a_damaged_record_is_refused(tmp_path, change):
    image = Image.new("RGB", (8, 8))
    record = Record("a house", (Drawn(1, (1, 2, 3, 4)),), "tiny", "0" * 64)
    info = saving_options("PNG", record, image)["pnginfo"]
    image.save(tmp_path / "whole.png", pnginfo=info)
    assert record_in(str(tmp_path / "whole.png")) == record
    import dataclasses
    import html

    from PIL.PngImagePlugin import PngInfo

    text = html.escape(json.dumps(change(dataclasses.asdict(record))))
    broken = PngInfo()
    broken.add_itxt("XML:com.adobe.xmp", f"<seed:record>{text}</seed:record>")
    image.save(tmp_path / "broken.png", pnginfo=broken)
    with pytest.raises(ImageError, match="is damaged"):
        record_in(str(tmp_path / "broken.png"))


def test_a_picture_is_rebuilt_from_its_codes(run, photo):
    run("reconstruct", photo, "-o", "r.png")
    run("encode", photo, "--json")
    codes = json.loads(run("encode", photo, "--json").stdout)["codes"]
    assert record_in("r.png").drawn[0].codes == tuple(codes)
    assert Image.open("r.png").getpixel((2, 12)) == (255, 0, 0) and Image.open("r.png").getpixel((12, 2)) == (0, 0, 255)


def test_a_picture_is_changed_by_words(run, photo, taught):
    line = json.loads(run("edit", photo, "make it green", "--seed", 2, "--json", "-o", "e.png", bundle=taught).stdout)
    assert len(line["codes"]) == 4 and record_in("e.png").prompt == "make it green"
    again = json.loads(run("edit", photo, "make it green", "--seed", 2, "--json", "-o", "f.png", bundle=taught).stdout)
    assert again["codes"] == line["codes"]
    assert "cannot edit images" in run("edit", photo, "make it green", fails=True).stderr


def test_questions_about_several_pictures_are_answered(run, photo, taught):
    other = photo.with_name("other.png")
    Image.new("RGB", (20, 20), "white").save(other)
    answers = [
        json.loads(run("ask", *images, "what is it?", "--json", bundle=taught).stdout)["answer"]
        for images in ([photo], [other], [photo, other], [photo])
    ]
    assert answers[0] == answers[3] and len(set(answers)) == 3
    assert "cannot answer questions" in run("ask", photo, "what is it?", fails=True).stderr
    assert "the prompt is empty" in run("ask", photo, " ", bundle=taught, fails=True).stderr


def test_a_picture_is_shown_where_it_is_asked_for_or_stdout_is_a_terminal(run, monkeypatch):
    block = "\N{UPPER HALF BLOCK}"
    assert block not in run("draw", "a thing", "-o", "a.png").stdout
    assert block in run("draw", "a thing", "-o", "b.png", "--show").stdout
    monkeypatch.setattr("seed_edge.terminal.protocol", lambda stream: "blocks")
    assert block in run("draw", "a thing", "-o", "c.png").stdout
    assert block not in run("draw", "a thing", "-o", "d.png", "--no-show").stdout
    assert block not in run("draw", "a thing", "-o", "e.png", "--json").stdout
