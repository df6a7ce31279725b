"""No file of the user's is ever lost: random trees and random command lines; folders of bundles, runs and codes."""

import json
import os
import random
import shutil
import stat
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from seed_edge.atomic import TEMPORARY
from seed_edge.cli import cli
from seed_edge.commands.caption_output import BEFORE_ENDING, SIDECAR_ENDINGS
from seed_edge.display import json_line
from seed_edge.errors import DataError
from seed_edge.image_formats import IMAGE_EXTENSIONS
from seed_edge.manifest import MANIFEST
from seed_edge.output_checks import check_new_file, prepare_output_folder
from seed_edge.user_dirs import bundles_folder

# ---- random trees, random commands -------------------------------------------------------------------------------

FOLDERS = ["", "more", "more/deep", ".hidden"]
STEMS = ["a", "b", "c", "a house", "n" * 244, os.fsdecode(b"caf\xe9"), "tab\tline\n"]
EXTENSIONS_BY_FORMAT = [
    ".jpg",
    ".PNG",
    ".png",
    ".webp",
    ".txt",
    ".caption",
    ".en.txt",
    ".json",
    ".jsonl",
    ".toml",
    ".dng",
    ".jpg.txt",
    "",
]
KINDS = [
    "picture",
    "picture",
    "picture",
    "drawn",
    "text",
    "long text",
    "binary",
    "empty",
    "captions",
    "captions, cut",
]
KINDS += ["captions and more", "codes", "link", "hard link", "dangling link", "folder", "read-only text"]
SIDECARS = ["txt", "txt", "caption", "en.txt", "jpg", "PNG", "", "..", "a/b", "json", "toml", "dng"]


@dataclass
class Tree:
    """Files that a test made, and what a command may do to them."""

    root: Path
    drawn: set[Path] = field(default_factory=set)
    captions: set[Path] = field(default_factory=set)

    def names(self) -> list[Path]:
        return sorted(
            path.relative_to(self.root)
            for path in self.root.rglob("*")
            if path.is_symlink() or not path.is_dir()
        )

    def content(self) -> dict[Path, str | bytes]:
        """Links by what they link to, files by their bytes."""
        found: dict[Path, str | bytes] = {}
        for name in self.names():
            path = self.root / name
            found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes()
        return found

    def identity(self, name: Path) -> tuple[int, int] | None:
        try:
            state = os.stat(self.root / name)
        except OSError:
            return None
        return state.st_dev, state.st_ino

    def same(self, name: Path) -> set[Path]:
        """All names of what a name leads to."""
        wanted = self.identity(name)
        return {each for each in self.names() if wanted is not None and self.identity(each) == wanted}


def make(tree: Tree, name: Path, kind: str, choice: random.Random, drawn: bytes) -> None:
    """Make one file of a kind; of links, to one that is there."""
    path = tree.root / name
    if path.exists() or path.is_symlink() or any(parent.is_file() for parent in path.parents):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json_line({"image": str(name), "caption": "a thing"}) + "\n"
    plain = {
        "drawn": drawn,
        "text": b"dear\n",
        "long text": b"dear " * 20_000,
        "binary": b"\0\xff" * 50,
        "empty": b"",
        "captions": line.encode() * 2,
        "captions, cut": (line * 2).encode()[:-5],
        "captions and more": line.encode() + b"notes\n",
        "codes": b"[0, 1, 2, 3]",
        "read-only text": b"dear\n",
    }
    others = [each for each in tree.names() if (tree.root / each).is_file()]
    if kind == "picture":
        Image.new("RGB", (choice.randrange(4, 20), 9), (choice.randrange(256), 9, 200)).save(
            path, choice.choice(["PNG", "JPEG"])
        )
    elif kind in plain:
        path.write_bytes(plain[kind])
        path.chmod(0o444 if kind == "read-only text" else 0o644)
        (tree.drawn if kind == "drawn" else tree.captions).update(
            {name} if kind in ("drawn", "captions", "captions, cut", "empty") else ()
        )
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif others:
        other = tree.root / choice.choice(others)
        path.symlink_to(other) if kind == "link" else os.link(other, path)


def caption_words(
    tree: Tree, choice: random.Random, names: list[Path]
) -> tuple[list[str], set[Path], set[Path]]:
    """A command, the names it reads, and those that it may change."""
    given_names = choice.choice(
        [["."], ["more", "."], [str(name) for name in choice.sample(names, min(3, len(names)))]]
    )
    words, read, may = ["caption", *given_names], set(), set()
    for each in given_names:
        place = tree.root / each
        found = [place] if not place.is_dir() else place.rglob("*")
        read |= {
            path.relative_to(tree.root)
            for path in found
            if path == place
            or (
                path.suffix.lower() in IMAGE_EXTENSIONS
                and not any(part[0] == "." for part in path.relative_to(place).parts)
            )
        }
    read = {name for name in read if (tree.root / name).is_file()}
    options = choice.choice([["--resume"], ["--overwrite"], ["--overwrite"], [], ["--resume", "--overwrite"]])
    if choice.random() < 0.5:
        ending, full = choice.choice(SIDECARS), choice.random() < 0.3
        words += ["--sidecar", ending, *(["--full-names"] if full else [])]
        *before, last = ending.removeprefix(".").split(".")
        if (
            last in SIDECAR_ENDINGS
            and all(map(BEFORE_ENDING.fullmatch, before))
            and options == ["--overwrite"]
        ):
            for image in read:
                beside = (
                    image.with_name(f"{image.name}.{ending}") if full else image.with_suffix(f".{ending}")
                )
                path = tree.root / beside
                if (
                    os.path.isfile(path)
                    and not path.is_symlink()
                    and path.stat().st_size <= 1 << 16
                    and b"\0" not in path.read_bytes()
                ):
                    may.add(beside)
    else:
        out = choice.choice([*names, Path("new.jsonl"), Path("more/new.jsonl"), Path("none/new.jsonl")])
        words += ["--out", str(out)]
        if options == ["--overwrite"]:
            may.add(Path(os.path.realpath(tree.root / out)).relative_to(tree.root))
        elif options == ["--resume"]:
            may |= {each for each in tree.same(out) if tree.same(each) & tree.captions}
    return [*words, *options], read, may


def drawing_words(
    tree: Tree, choice: random.Random, names: list[Path]
) -> tuple[list[str], set[Path], set[Path]]:
    """A command, the names it reads, and those that it may change."""
    source = choice.choice(names)
    kind = choice.choice(["draw", "draw", "grid", "several", "again", "prompts", "reconstruct", "decode"])
    words = {
        "draw": ["draw", "a house"],
        "grid": ["draw", "a house", "-n", "3", "--grid"],
        "several": ["draw", "a house", "-n", "3"],
        "again": ["draw", "--from", str(source)],
        "prompts": ["draw", "--prompts", str(source)],
        "reconstruct": ["reconstruct", str(source)],
        "decode": ["decode", str(source)],
    }[kind]
    read = {source} if kind in ("again", "prompts", "reconstruct", "decode") else set()
    out = choice.choice([*names, *names, source, Path("new.png"), Path("none/new.png"), Path("more")])
    if kind in ("reconstruct", "decode") or choice.random() < 0.7:
        words += ["-o", str(out)]
        target = Path(os.path.realpath(tree.root / out)).relative_to(tree.root)
        if choice.random() < 0.5:
            words += ["--overwrite"]
            return words, read, {target}
        return words, read, {target} if tree.same(target) & tree.drawn else set()
    return words, read, set()


seen: Counter[str] = Counter()
"""What became of the commands, so that a test that tries nothing fails."""


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # making an example smaller would take minutes
)
@given(
    entries=st.lists(
        st.tuples(
            st.sampled_from(FOLDERS),
            st.sampled_from(STEMS),
            st.sampled_from(EXTENSIONS_BY_FORMAT),
            st.sampled_from(KINDS),
        ),
        min_size=4,
        max_size=14,
    ),
    seed=st.integers(0, 1 << 32),
)
def test_random_commands_never_change_inputs_and_replace_only_named_files(tiny, entries, seed):
    choice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder).resolve())
        for place, stem, ending, kind in entries:
            make(tree, Path(place, stem + ending), kind, choice, drawn_picture(tiny))
        names = tree.names()
        if not names:
            return
        words, read, may = (caption_words if choice.random() < 0.5 else drawing_words)(tree, choice, names)
        never = {each for name in read for each in tree.same(name)} | read
        before = tree.content()
        here = os.getcwd()
        os.chdir(folder)
        try:
            result = CliRunner().invoke(
                cli, [*words, "-q", "--bundle", str(tiny), "--device", "cpu"], input=""
            )
        finally:
            os.chdir(here)
        after = tree.content()
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
        for name, content in before.items():
            if name in never or name not in may:
                assert after.get(name) == content, f"{words}: {name} was changed"
            elif "--resume" in words and isinstance(content, bytes):
                whole = content[: content.rfind(b"\n") + 1]
                assert after[name][: len(whole)] == whole, f"{words}: {name} lost lines"
        new = set(after) - set(before)
        assert not [name for name in new if TEMPORARY.fullmatch(name.name)], words
        assert before.keys() <= after.keys()
        seen["all"] += 1
        seen["made"] += bool(new)
        seen["changed"] += any(after[name] != before[name] for name in before)
        seen["refused"] += result.exit_code == 1
        seen["some failed"] += result.exit_code == 3


def test_the_random_commands_covered_all_outcomes():
    if not seen:
        pytest.skip("runs after the test above")
    assert seen["made"] > 10 and seen["changed"] > 3 and seen["refused"] > 20 and seen["some failed"] > 5, (
        seen
    )


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    seen.clear()


PICTURE: list[bytes] = []


def drawn_picture(tiny: Path) -> bytes:
    """A picture that seed-edge drew."""
    if not PICTURE:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.png"
            CliRunner().invoke(
                cli, ["draw", "a house", "-q", "-o", str(path), "--bundle", str(tiny)], catch_exceptions=False
            )
            PICTURE.append(path.read_bytes())
    return PICTURE[0]


# ---- bundles -----------------------------------------------------------------------------------------------------


def content(place: Path) -> dict[Path, bytes]:
    return {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def kept(tiny):
    """A bundle that was added."""
    run("bundles", "add", tiny, "--name", "kept")
    yield bundles_folder() / "kept"
    place = bundles_folder() / "kept"
    place.unlink() if place.is_symlink() else shutil.rmtree(place, ignore_errors=True)


def notes(place: Path, _: Path) -> None:
    (place / "notes.txt").write_text("mine")


def notes_in_a_folder(place: Path, _: Path) -> None:
    (place / "more").mkdir()
    (place / "more" / "notes.txt").write_text("mine")


def an_app(place: Path, _: Path) -> None:
    (place / MANIFEST).write_text('{"name": "an app", "icons": []}')


def garbage(place: Path, _: Path) -> None:
    (place / MANIFEST).write_bytes(b"\xff\0")


def linked_manifest(place: Path, other: Path) -> None:
    shutil.copy(place / MANIFEST, other / "mine.json")
    (place / MANIFEST).unlink()
    (place / MANIFEST).symlink_to(other / "mine.json")


def no_manifest(place: Path, _: Path) -> None:
    (place / MANIFEST).unlink()


def linked(place: Path, other: Path) -> None:
    place.rename(other / "elsewhere")
    place.symlink_to(other / "elsewhere")


def hidden(place: Path, _: Path) -> None:
    (place / ".git").write_text("mine")


@pytest.mark.parametrize(
    "change", [notes, notes_in_a_folder, an_app, garbage, linked_manifest, no_manifest, linked, hidden]
)
def test_a_folder_with_other_files_is_not_removed_or_replaced(kept, tiny, tmp_path, change):
    change(kept, tmp_path)
    before = content(kept), content(tmp_path), sorted(os.listdir(kept.parent))
    for words in (
        ("remove", "kept", "-y"),
        ("add", tiny, "--name", "kept", "--replace"),
        ("add", tiny, "--name", "kept"),
    ):
        told = run("bundles", *words, code=1)
        assert len(told.strip().splitlines()) == 1 and "Traceback" not in told
    assert (content(kept), content(tmp_path), sorted(os.listdir(kept.parent))) == before


def test_a_damaged_bundle_can_be_removed_and_replaced(kept, tiny):
    (kept / "decoder.onnx").unlink()
    (kept / "llm.gguf").write_bytes(b"short")
    run("bundles", "add", tiny, "--name", "kept", "--replace")
    assert content(kept) == content(tiny)
    manifest = json.loads((kept / MANIFEST).read_text())
    (kept / MANIFEST).write_text(json.dumps(manifest | {"format": 99, "new": True}))
    run("bundles", "remove", "kept", "-y")
    assert not kept.exists() and not [name for name in os.listdir(kept.parent) if name.startswith(".kept")]


def test_a_bundle_cannot_be_added_over_itself(kept):
    assert "is an input of this command" in run("bundles", "add", kept, "--name", "kept", "--replace", code=1)
    assert (kept / MANIFEST).exists()


def test_a_file_added_to_a_bundle_during_its_deletion_is_kept(kept, monkeypatch):
    real = os.replace

    def replace(source, target):
        if Path(source) == kept:
            (kept / "notes.txt").write_text("mine")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    told = run("bundles", "remove", "kept", "-y", code=1)
    place = Path(told.strip().split("it is now in ")[1])
    assert (place / "notes.txt").read_text() == "mine" and (place / MANIFEST).exists()
    shutil.rmtree(place.parent)


# ---- runs, codes, sheets -----------------------------------------------------------------------------------------


def test_an_output_folder_is_marked_and_can_be_reused(tmp_path):
    out = tmp_path / "deep" / "out"
    prepare_output_folder(out, "run")
    (out / "config.json").write_text("ours")
    prepare_output_folder(out, "run")
    (tmp_path / "empty").mkdir()
    prepare_output_folder(tmp_path / "empty", "codes")
    with pytest.raises(DataError, match="not a folder of codes"):
        prepare_output_folder(out, "codes")


@pytest.mark.parametrize(
    "name", ["config.json", "codes-00000.tar", "notes.txt", ".hidden", "state", ".seed-edge-codes"]
)
def test_a_folder_with_other_files_is_not_an_output_folder(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(DataError, match="choose a new folder"):
        prepare_output_folder(tmp_path / "out", "run", signs=("state.pt", "*/state.pt"))
    assert os.listdir(tmp_path / "out") == [name]


def test_a_run_of_an_earlier_version_can_be_resumed(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.pt").write_text("ours")
    prepare_output_folder(tmp_path, "run", signs=("state.pt", "*/state.pt"))


@pytest.mark.parametrize("kind", ["file", "dangling link", "pipe", "planted mark"])
def test_a_file_is_not_an_output_folder(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "pipe":
        os.mkfifo(out)
    elif kind == "planted mark":
        out.mkdir()
        (out / ".seed-edge-run").symlink_to(tmp_path / "nowhere")
    else:
        out.symlink_to("nowhere")
    with pytest.raises(DataError):
        prepare_output_folder(out, "run")
    assert not (tmp_path / "nowhere").exists()


def test_an_input_is_not_an_output_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    for out in ("data", "link"):
        with pytest.raises(DataError, match="an input of this command"):
            prepare_output_folder(tmp_path / out, "run", [None, tmp_path / "data"])
    assert os.listdir(tmp_path / "data") == []


def test_check_new_file_rejects_an_existing_file(tmp_path):
    check_new_file(tmp_path / "new.tar")
    check_new_file(Path("/dev/null"))
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "mine.tar").write_text("mine")
    for name in ("mine.tar", "link", ""):
        with pytest.raises(DataError, match="choose another --out"):
            check_new_file(tmp_path / name)
    assert stat.S_ISLNK((tmp_path / "link").lstat().st_mode)


@pytest.mark.parametrize("option", [(), ("--run", "run")])
def test_tokenize_does_not_write_into_folders_of_other_content(tiny, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Image.new("RGB", (16, 16), "red").save("data/a.png")
    Path("out").mkdir()
    for name in ("codes-holidays.tar", "codes-00000.tar", "codebook.npz"):
        Path("out", name).write_text("mine")
    before = content(tmp_path)
    assert "not a folder of codes" in run(
        "tokenize", "--data", "data", "--out", "out", "--bundle", tiny, code=1
    )
    assert "an input of this command" in run(
        "tokenize", "--data", "data", "--out", "data", "--bundle", tiny, code=1
    )
    assert content(tmp_path) == before
