"""Everything about drawing beyond one picture: several, from a file, from a picture, what files tell, edits."""

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from seed_edge.bundle import Bundle
from seed_edge.cli import cli
from seed_edge.commands.image_output import numbered, prompt_file_name
from seed_edge.errors import ImageError
from seed_edge.image_metadata import AI_MADE, DrawnImage, Record, bundle_hash, read_record, save_options
from seed_edge.manifest import MANIFEST


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


def test_the_seed_of_each_further_image_is_one_higher(run):
    told = run("draw", "a house", "-n", 3, "-o", "h.png", "--seed", 5).stdout.split()
    assert told == ["h-1.png", "h-2.png", "h-3.png"]
    assert [read_record(name).drawn[0].seed for name in told] == [5, 6, 7]
    run("draw", "a house", "-o", "alone.png", "--seed", 6)
    assert Path("h-2.png").read_bytes() == Path("alone.png").read_bytes()


def test_a_grid_is_one_image_and_can_be_drawn_again(run):
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
    assert (
        "was not drawn: the prompt has" in result.stderr and "1 of 3 prompts were not drawn" in result.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give one of"),
        (("a house", "--from", "x.png"), "give one of"),
        (("--prompts", "none.txt"), "none.txt cannot be read"),
        (("--prompts", "empty.txt"), "holds no prompts"),
        (("--prompts", "empty.txt", "-o", "no/where"), "the folder cannot be created"),
        (("--from", "none.png"), "no such file"),
        (("--from", "photo.png"), "has no seed-edge metadata"),
        (("--from", "empty.txt"), "not an image"),
    ],
)
def test_invalid_inputs_of_draw_are_errors(run, photo, tmp_path, arguments, says):
    (tmp_path / "empty.txt").write_text("\n\n")
    assert says in run("draw", *arguments, fails=True).stderr


def test_a_negative_prompt_changes_the_image(run):
    def drawn(name, *more):
        lines = run(
            "draw", "a house", "-n", 8, "--seed", 3, "-o", f"{name}.png", "--json", *more
        ).stdout.splitlines()
        return [json.loads(line)["codes"] for line in lines]

    none, cat, again, grass = (
        drawn("a"), drawn("b", "--negative", "a cat"), drawn("c", "--negative", "a cat"), drawn("d", "--negative", "green grass")
    )  # fmt: skip
    assert none != cat == again != grass
    assert read_record("b-1.png").negative == "a cat"
    run("draw", "--from", "b-1.png", "-o", "again.png")
    assert Path("again.png").read_bytes() == Path("b-1.png").read_bytes()


def test_best_of_draws_candidates_and_keeps_one(run):
    def drawn(*more):
        hot = ("draw", "a house", "-n", 8, "--seed", 3, "--temperature", 5, "-o", "a.png", "--json")
        return [json.loads(line)["codes"] for line in run(*hot, *more).stdout.splitlines()]

    assert drawn() == drawn("--tries", 1) != drawn("--tries", 6) == drawn("--tries", 6)
    assert "17 is not in the range" in run("draw", "a house", "--tries", 17, fails=True).stderr


def test_size_is_the_side_of_the_saved_image(run):
    run("draw", "a house", "--seed", 1, "--size", 40, "-o", "a.png")
    assert Image.open("a.png").size == (40, 40)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_an_image_file_has_provenance_and_the_ai_mark(run, tiny, name):
    run("draw", "a <red> & blue house", "--seed", 9, "-o", name)
    record = read_record(name)
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
    with pytest.raises(ImageError, match="has no seed-edge metadata"):
        read_record(f"bare-{name}")


def test_an_image_of_another_bundle_is_not_drawn_again(run, taught):
    run("draw", "a house", "--seed", 1, "-o", "a.png")
    assert "was drawn by the bundle tiny" in run("draw", "--from", "a.png", bundle=taught, fails=True).stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r | {"drawn": []},
        lambda r: r | {"prompt": 3},
        lambda r: r | {"more": 1},
        lambda r: [1],
        lambda r: 0,
    ],
)
def test_damaged_provenance_is_an_error(tmp_path, change):
    image = Image.new("RGB", (8, 8))
    record = Record("a house", (DrawnImage(1, (1, 2, 3, 4)),), "tiny", "0" * 64)
    info = save_options("PNG", record, image)["pnginfo"]
    image.save(tmp_path / "whole.png", pnginfo=info)
    assert read_record(str(tmp_path / "whole.png")) == record
    import dataclasses
    import html

    from PIL.PngImagePlugin import PngInfo

    text = html.escape(json.dumps(change(dataclasses.asdict(record))))
    broken = PngInfo()
    broken.add_itxt("XML:com.adobe.xmp", f"<seed:record>{text}</seed:record>")
    image.save(tmp_path / "broken.png", pnginfo=broken)
    with pytest.raises(ImageError, match="is damaged"):
        read_record(str(tmp_path / "broken.png"))


def test_reconstruct_decodes_the_codes_of_an_image(run, photo):
    run("reconstruct", photo, "-o", "r.png")
    run("encode", photo, "--json")
    codes = json.loads(run("encode", photo, "--json").stdout)["codes"]
    assert read_record("r.png").drawn[0].codes == tuple(codes)
    assert Image.open("r.png").getpixel((2, 12)) == (255, 0, 0) and Image.open("r.png").getpixel((12, 2)) == (
        0,
        0,
        255,
    )


def test_edit_changes_an_image(run, photo, taught):
    line = json.loads(
        run("edit", photo, "make it green", "--seed", 2, "--json", "-o", "e.png", bundle=taught).stdout
    )
    assert len(line["codes"]) == 4 and read_record("e.png").prompt == "make it green"
    again = json.loads(
        run("edit", photo, "make it green", "--seed", 2, "--json", "-o", "f.png", bundle=taught).stdout
    )
    assert again["codes"] == line["codes"]
    assert "cannot edit images" in run("edit", photo, "make it green", fails=True).stderr


def test_ask_takes_several_images(run, photo, taught):
    other = photo.with_name("other.png")
    Image.new("RGB", (20, 20), "white").save(other)
    answers = [
        json.loads(run("ask", *images, "what is it?", "--json", bundle=taught).stdout)["answer"]
        for images in ([photo], [other], [photo, other], [photo])
    ]
    assert answers[0] == answers[3] and len(set(answers)) == 3
    assert "cannot answer questions" in run("ask", photo, "what is it?", fails=True).stderr
    assert "the prompt is empty" in run("ask", photo, " ", bundle=taught, fails=True).stderr


def test_an_image_is_shown_with_show_or_if_stdout_is_a_terminal(run, monkeypatch):
    block = "\N{UPPER HALF BLOCK}"
    assert block not in run("draw", "a thing", "-o", "a.png").stdout
    assert block in run("draw", "a thing", "-o", "b.png", "--show").stdout
    monkeypatch.setattr("seed_edge.terminal.detect_protocol", lambda stream: "blocks")
    assert block in run("draw", "a thing", "-o", "c.png").stdout
    assert block not in run("draw", "a thing", "-o", "d.png", "--no-show").stdout
    assert block not in run("draw", "a thing", "-o", "e.png", "--json").stdout


# ---- a folder as output --------------------------------------------------------------------------------------------


FOLDER_OUTPUTS = {
    "a-house": ("draw", "a house", "--seed", 1),
    "make-it-green": ("edit", "photo.png", "make it green", "--seed", 1),
    "photo": ("reconstruct", "photo.png"),
    "Fox 1": ("decode", "Fox 1.json"),
    "decoded": ("decode", "-"),
}


@pytest.mark.parametrize("stem", FOLDER_OUTPUTS)
@pytest.mark.parametrize("folder", ["new/", "existing", "existing/"])
def test_a_folder_as_output_holds_an_image_named_after_the_input(run, photo, taught, stem, folder):
    Path("existing").mkdir()
    Path("Fox 1.json").write_text("[0, 1, 2, 3]")
    place = Path(folder)
    for option in ((), ("--overwrite",)):
        existing = content(place)
        result = run(*FOLDER_OUTPUTS[stem], "-o", folder, *option, bundle=taught, input="[0, 1, 2, 3]")
        name = f"{stem}-2.png" if existing else f"{stem}.png"
        assert result.stdout == f"{place / name}\n"
        assert content(place).keys() - existing.keys() == {Path(name)}
        assert existing.items() <= content(place).items()
    run(*FOLDER_OUTPUTS[stem], "-o", "expected.png", bundle=taught, input="[0, 1, 2, 3]")
    assert (place / f"{stem}.png").read_bytes() == Path("expected.png").read_bytes()


def test_the_codes_of_several_images_are_decoded_into_a_folder(run):
    lines = "".join(json.dumps({"image": name, "codes": [0, 1, 2, 3]}) + "\n" for name in "ab")
    Path("codes.jsonl").write_text(lines)
    assert run("decode", "codes.jsonl", "-o", "out/").stdout.split() == ["out/codes-1.png", "out/codes-2.png"]


@pytest.mark.parametrize("stem", FOLDER_OUTPUTS)
def test_an_output_folder_that_cannot_be_created_is_an_error(run, photo, taught, stem):
    Path("Fox 1.json").write_text("[0, 1, 2, 3]")
    before = content(taught)
    for folder, message in (
        ("photo.png/", "photo.png: the folder cannot be created"),
        ("no/where/", "no/where: the folder cannot be created"),
        (f"{taught}/new/", "lies in the bundle"),
        (f"{taught}/", "lies in the bundle"),
    ):
        result = run(*FOLDER_OUTPUTS[stem], "-o", folder, bundle=taught, fails=True, input="[0, 1, 2, 3]")
        assert message in result.stderr
    assert content(taught) == before and not (taught / "new").exists()


# ---- no file of the user's is lost -------------------------------------------------------------------------------


def content(place):
    """Every file below a folder."""
    return {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.fixture
def inputs(run, photo, tmp_path):
    """Files that the commands read."""
    run("draw", "a house", "--seed", 1, "-o", "drawn.png")
    (tmp_path / "codes.png").write_text("[0, 1, 2, 3]")  # any name may hold codes
    (tmp_path / "prompts.jpg").write_text("a house\n")
    (tmp_path / "settings.webp").write_text("[draw]\nseed = 3\n")
    return tmp_path


READING = {
    "drawn.png": ("draw", "--from", "drawn.png"),
    "codes.png": ("decode", "codes.png"),
    "prompts.jpg": ("draw", "--prompts", "prompts.jpg"),
    "settings.webp": ("--config", "settings.webp", "draw", "a house"),
    "photo.png": ("reconstruct", "photo.png"),
}


@pytest.mark.parametrize("name", [*READING, "edited"])
@pytest.mark.parametrize("how", ["same", "other spelling", "hard link", "link"])
@pytest.mark.parametrize("option", [(), ("--overwrite",)])
def test_an_input_is_never_the_output(run, inputs, tiny, taught, name, how, option):
    words = READING.get(name, ("edit", "drawn.png", "make it green"))
    given = "drawn.png" if name == "edited" else name
    out = Path("other" + Path(given).suffix)
    if how == "hard link":
        out.hardlink_to(given)
    elif how == "link":
        out.symlink_to(given)
    else:
        out = Path(given) if how == "same" else Path("..", inputs.name, given)
    before = content(inputs)
    result = run(*words, "-o", out, *option, bundle=taught if name == "edited" else tiny, fails=True)
    assert content(inputs) == before and len(result.stderr.strip().splitlines()) == 1
    assert "choose another -o" in result.stderr


def test_nothing_is_written_into_the_bundle(run, taught):
    before = content(taught)
    for name in ("x.png", "manifest.json"):
        (taught / "x.png").unlink(missing_ok=True)
        assert run("draw", "a house", "-o", taught / name, "--overwrite", bundle=taught, fails=True).stderr
    assert content(taught) == before


MAKING = [
    ("draw", "a house"),
    ("decode", "codes.png"),
    ("reconstruct", "photo.png"),
    ("draw", "a house", "-n", 4, "--grid"),
]


@pytest.mark.parametrize("words", MAKING)
@pytest.mark.parametrize("kind", ["photo", "text", "empty", "cut"])
def test_a_file_that_was_not_drawn_is_replaced_only_with_overwrite(run, inputs, words, kind):
    if kind == "photo":
        Image.new("RGB", (8, 8), "red").save("mine.png")
    else:
        data = {"text": b"dear", "empty": b"", "cut": Path("drawn.png").read_bytes()[:60]}[kind]
        Path("mine.png").write_bytes(data)
    before = content(inputs)
    assert "was not drawn by seed-edge" in run(*words, "-o", "mine.png", fails=True).stderr
    assert content(inputs) == before
    run(*words, "-o", "mine.png", "--overwrite")
    drawn = Path("mine.png").read_bytes()
    assert drawn != before[Path("mine.png")]
    run(*words, "-o", "mine.png", "--no-metadata")
    run(*words, "-o", "mine.png")  # our own, whether it says how it was made or not


def test_a_file_created_during_a_drawing_is_not_replaced(run, tmp_path, monkeypatch):
    from seed_edge.runtime.pipeline import SeedEdge

    real = SeedEdge.draw

    def slow(self, *arguments, **options):
        (tmp_path / "out.png").write_bytes(b"dear")
        return real(self, *arguments, **options)

    monkeypatch.setattr(SeedEdge, "draw", slow)
    assert "was not drawn" in run("draw", "a house", "-o", "out.png", fails=True).stderr
    assert (tmp_path / "out.png").read_bytes() == b"dear"


TWICE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from seed_edge.cli import cli
cli(["draw", "a house", "-n", "12", "--seed", sys.argv[2], "-q", "--bundle", sys.argv[1], *sys.argv[3:]])
"""


@pytest.mark.parametrize("extra", [(), ("-o", "fox.png")])
def test_parallel_drawings_get_different_names(tiny, tmp_path, extra):
    words = [sys.executable, "-c", TWICE, str(tiny)]
    running = [
        subprocess.Popen([*words, str(100 * n), *extra], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    told = [process.communicate()[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    every = [name for names in told for name in names]
    assert sorted(every) == sorted(os.listdir(tmp_path)) and len(set(every)) == 36
    for number, names in enumerate(told):
        assert [read_record(tmp_path / name).drawn[0].seed for name in names] == [
            100 * number + n for n in range(12)
        ]


def test_an_image_is_written_to_stdout(run, inputs):
    for words in (*MAKING, ("draw", "--from", "drawn.png")):
        before = set(os.listdir())
        picture = Image.open(io.BytesIO(run(*words, "-o", "-", "-q", "--show").stdout_bytes))
        assert picture.format == "PNG" and picture.size[0] in (16, 32) and set(os.listdir()) == before
    assert "stdout takes one image" in run("draw", "a house", "-n", 2, "-o", "-", fails=True).stderr
    assert "stdout takes the image only" in run("draw", "a house", "--json", "-o", "-", fails=True).stderr


def test_an_image_is_written_to_pipes_and_devices(run, tmp_path, tiny):
    os.mkfifo("pipe")
    os.mkfifo("pipe.jpg")
    for name, kind in (("pipe", "PNG"), ("pipe.jpg", "JPEG")):
        found = []
        reader = threading.Thread(target=lambda name=name, found=found: found.append(Path(name).read_bytes()))
        reader.start()
        run("draw", "a house", "-o", name)
        reader.join(20)
        assert Image.open(io.BytesIO(found[0])).format == kind and stat.S_ISFIFO(os.stat(name).st_mode)
    run("draw", "a house", "-o", "/dev/null")
    words = [
        sys.executable,
        "-m",
        "seed_edge",
        "draw",
        "a house",
        "-q",
        "-o",
        "/dev/stdout",
        "--bundle",
        str(tiny),
    ]
    assert Image.open(io.BytesIO(subprocess.run(words, capture_output=True, check=True).stdout)).size == (
        16,
        16,
    )
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("\N{HAMSTER FACE}x" * 50, None),
        ("\U00020000" * 70, "\U00020000" * 30 + ".png"),
        ("con", "picture-con.png"),
        ("COM1", "picture-com1.png"),
        ("../../etc/passwd", "etc-passwd.png"),
        ("***", "picture.png"),
        ("-o", "o.png"),
        (os.fsdecode(b"caf\xe9"), "caf.png"),
        (".hidden", "hidden.png"),
    ],
)
def test_file_names_of_prompts_are_valid(tmp_path, prompt, name):
    path = prompt_file_name(prompt, tmp_path)
    longest = numbered(numbered(path, 1000), 1000)  # the last of many, of which there are many already
    longest.touch()
    assert os.listdir(tmp_path) == [longest.name] and len(os.fsencode(longest.name)) <= 143
    assert name is None or path.name == name


@pytest.mark.parametrize("name", ["n" * 252 + ".png", "x" * 300 + ".jpg"])
def test_a_name_that_is_too_long_is_an_error_before_any_work(run, name, monkeypatch):
    monkeypatch.setattr("seed_edge.load", lambda *_, **__: pytest.fail("work has begun"))
    assert "too long" in run("draw", "a house", "-o", name, fails=True).stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("-n", 64, "--size", 4096), "over the limit of 200,000,000 pixels in total"),
        (("-n", 900, "--size", 600, "-o", "g.webp"), "over the limit"),
        (("-n", 2, "--size", 4096), None),
        (("-n", 1000, "--size", 17, "-o", "g.webp"), None),
    ],
)
def test_the_size_of_a_grid_is_checked_before_any_work(run, monkeypatch, options, says):
    class Begun(Exception):
        pass

    def begin(*_):
        raise Begun

    monkeypatch.setattr("seed_edge.commands.image_writer.ImageWriter.draw", begin)
    if says is None:
        with pytest.raises(Begun):
            run("draw", "a house", "--grid", *options)
    else:
        assert says in run("draw", "a house", "--grid", *options, fails=True).stderr


def test_a_grid_is_limited_by_its_format_and_by_free_memory(monkeypatch):
    from click import ClickException

    from seed_edge.commands.image_output import check_grid

    for path, count, side, says in (("a.webp", 4, 8_192, "16,383 per side"), ("a.png", 4, 7_000, "")):
        if says:
            with pytest.raises(ClickException, match=says):
                check_grid(count, side, Path(path)) if side * side * count <= 200_000_000 else check_grid(
                    2, side, Path(path)
                )
        else:
            check_grid(count, side, Path(path))
    monkeypatch.setattr("seed_edge.memory.available_memory", lambda: 10_000)
    with pytest.raises(ClickException, match="are free"):
        check_grid(4, 40, Path("a.png"))


def test_a_grid_of_many_images_is_saved_in_every_format(run):
    for name in ("g.png", "g.jpg", "g.webp"):
        run("draw", "a house", "-n", 330, "--grid", "-o", name, "--size", 16)
        assert Image.open(name).size == (19 * 16, 18 * 16)


def test_an_interrupted_grid_is_saved(run, monkeypatch):
    from seed_edge.commands.image_writer import ImageWriter

    real, made = ImageWriter.draw, []

    def draw(self, prompt, seed, path):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(seed)
        return real(self, prompt, seed, path)

    with monkeypatch.context() as patch:
        patch.setattr(ImageWriter, "draw", draw)
        result = run("draw", "a house", "-n", 16, "--grid", "-o", "g.png", "--seed", 1, fails=True)
    assert "5 of 16 images were drawn" in result.stderr and Image.open("g.png").size == (48, 32)
    assert [each.seed for each in read_record("g.png").drawn] == [1, 2, 3, 4, 5]


def test_latents_are_saved_under_an_unused_name(tmp_path, monkeypatch):
    import numpy as np
    from click import ClickException

    from seed_edge.commands.image_output import backup_latents

    monkeypatch.chdir(tmp_path)
    Path("fox.npy").write_bytes(b"dear")
    with backup_latents(Path("fox.png")) as keep:
        keep(np.zeros(3))
        Path("fox-3.npy").write_bytes(b"dear")  # a name that would have come next
        assert sorted(os.listdir()) == ["fox-2.npy", "fox-3.npy", "fox.npy"]
    assert sorted(os.listdir()) == ["fox-3.npy", "fox.npy"] and Path("fox.npy").read_bytes() == b"dear"
    for output, name in (("fox.png", "fox-2.npy"), ("-", "picture.npy")):
        with pytest.raises(ClickException, match=name), backup_latents(Path(output)) as keep:
            keep(np.ones(3))
            raise ImageError("no memory")
        assert np.load(name).sum() == 3
    with backup_latents(tmp_path / "none" / "fox.png") as keep:
        keep(np.zeros(3))  # said, and no reason to lose the picture


def test_progress_of_a_drawing_is_a_line_every_30_seconds_without_a_terminal(monkeypatch):
    from seed_edge.commands import common

    screen, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    for quiet in (False, True):
        with common.Progress("steps", quiet) as progress:
            for done in range(1, 8):
                now[0] += 10
                progress(done, 50)
    assert screen.getvalue() == "steps: 3/50\nsteps: 6/50\n"
