"""What the documents show runs: command lines, Python snippets, and the programs of examples/.

In README.md, blocks marked `bash` and `python` are run as they are printed. Blocks marked `shell` need an installation,
checkpoints or training; of these, and of the other documents, each command line is parsed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from PIL import Image

from seed_edge.cli import cli

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "recipes" / "mini" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PARTIAL = {"...", "[...]"}


def blocks(path, *languages):
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def command_lines(path):
    """Every call of `seed-edge` in the blocks of a document, as words."""
    for text in blocks(path, "", "bash", "shell"):
        for line in text.replace("\\\n", " ").splitlines():
            for part in re.split(r"\|\|?|&&", line.split(" #")[0]):
                part = part.strip()
                if part.startswith("seed-edge "):
                    yield shlex.split(re.sub(r"\s[<>]\s?\S+", "", part))[1:]


LINES = [
    (path.name, " ".join(words), words)
    for path in DOCUMENTS
    if path.is_file()
    for words in command_lines(path)
]


@pytest.fixture
def place(tmp_path):
    """A folder with the examples, in which `seed-edge` is this package's command."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "seed-edge"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m seed_edge "$@"\n')
    script.chmod(0o755)
    return tmp_path


def run(words, place):
    path = os.pathsep.join([str(place / "bin"), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "SEED_EDGE_HOME": str(place / "home")}
    if (ROOT / "seed_edge").is_dir():
        env["PYTHONPATH"] = str(ROOT)
    return subprocess.run(words, cwd=place, env=env, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("bash") is None, reason="the blocks are for bash")
def test_the_commands_of_the_readme_run_as_printed(place):
    found = blocks(ROOT / "README.md", "bash")
    assert len(found) >= 3
    result = run(["bash", "-euo", "pipefail", "-c", "\n".join(found)], place)
    assert result.returncode == 0, result.stderr
    assert len((place / "captions.jsonl").read_text().splitlines()) == 2
    for name in (
        "fox.png",
        "houses.png",
        "again.png",
        "blue.png",
        "cat-from-codes.png",
        "decoded-1.png",
        "decoded-2.png",
    ):
        assert Image.open(place / name).size[0] >= 128


def test_the_python_of_the_readme_runs(place):
    (found,) = blocks(ROOT / "README.md", "python")
    result = run([sys.executable, "-c", found], place)
    assert result.returncode == 0 and result.stdout.strip() and (place / "fox.png").is_file(), result.stderr


@pytest.mark.parametrize(("name", "line", "words"), LINES, ids=[f"{name}-{line}" for name, line, _ in LINES])
def test_every_command_line_of_the_documents_is_one(name, line, words):
    command, rest = cli, [word for word in words if word not in PARTIAL and not word.startswith("$")]
    while isinstance(command, click.Group):
        while rest[0].startswith("-"):
            rest = rest[2:]
        command, rest = command.get_command(click.Context(command), rest[0]), rest[1:]
        assert command is not None, line
    parser = command.make_parser(click.Context(command))
    parser.parse_args(list(rest))


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("caption_folder.py", ["examples"], "cat.jpg\t"), ("draw_prompt.py", ["a red fox", "fox.png"], "fox.png"),
        ("find_similar.py", ["examples/cat.jpg", "examples/coffee.jpg", "examples/cat.jpg"], "32\texamples/cat.jpg"),
        ("round_trip.py", ["examples/coffee.jpg", "decoded.png"], " "),
        ("handle_errors.py", ["examples/cat.jpg", "examples/draw_prompt.py"], "failed: examples/draw_prompt.py"),
    ],
)  # fmt: skip
def test_the_examples_run(place, program, arguments, words):
    result = run([sys.executable, f"examples/{program}", *arguments], place)
    assert result.returncode == 0 and words in result.stdout, result.stderr


def test_no_example_is_left_out():
    tested = {"caption_folder.py", "draw_prompt.py", "find_similar.py", "handle_errors.py", "round_trip.py"}
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == tested
