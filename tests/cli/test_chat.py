import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from seed_edge.cli import cli
from seed_edge.commands import chat as chat_module
from seed_edge.commands.chat import WORD, _unquote
from seed_edge.manifest import MANIFEST
from seed_edge.runtime.conversation import Conversation
from seed_edge.runtime.pipeline import SeedEdge


@pytest.fixture
def chat(tiny, tmp_path, monkeypatch):
    """Chat in an empty folder with the tiny bundle, said to have been taught to."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, "bundle")
    manifest = json.loads(Path("bundle", MANIFEST).read_text())
    manifest["language"]["prompts"] |= {
        "turn": "U: {images}{text}\nA:",
        "before_answer": " ",
        "between_turns": "\n",
    }
    Path("bundle", MANIFEST).write_text(json.dumps(manifest))
    Image.new("RGB", (30, 30), "red").save("my photo.png")

    def call(*lines, options=(), code=0):
        result = CliRunner().invoke(
            cli, ["chat", "--bundle", "bundle", "-q", *options], input="\n".join(lines) + "\n"
        )
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def said(monkeypatch):
    """What is said to the conversation, with the number of images."""
    heard, say = [], Conversation.say
    monkeypatch.setattr(
        Conversation,
        "say",
        lambda self, text, images=(), draw=False: (
            heard.append((text, len(images), draw)),
            say(self, text, images, draw=draw),
        )[1],
    )
    return heard


def test_messages_are_answered_and_images_saved(chat, said):
    result = chat("hello", "/draw a red fox", "/draw a house", "/quit", "never")
    assert [text for text, *_ in said] == ["hello", "a red fox", "a house"]
    assert sorted(path.name for path in Path().glob("chat*.png")) == ["chat-2.png", "chat.png"]
    assert result.stdout.splitlines()[-1] == "chat-2.png"
    told = json.loads(CliRunner().invoke(cli, ["inspect", "chat.png", "--json"]).stdout)
    assert told["prompt"] == "a red fox" and told["drawn"][0]["seed"] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("'my photo.png' what is it", ("what is it", 1)),
        ('"my photo.png" "my photo.png" and these', ("and these", 2)),
        (r"my\ photo.png what is it", ("what is it", 1)),
        ("what's my photo.png", ("what's my photo.png", 0)),
        ("'missing.png' hm", ("'missing.png' hm", 0)),
    ],
)
def test_files_dropped_on_the_terminal_are_attached(chat, said, line, message):
    chat(line)
    assert said == [(*message, False)]


def test_an_image_is_attached_to_the_next_message(chat, said):
    result = chat("/image my photo.png", "'my photo.png'", "what are these", "/image missing.png", "well")
    assert [(text, images) for text, images, _ in said] == [("what are these", 2), ("well", 0)]
    assert "2 images attached to the next message" in result.stderr and "Error: missing.png" in result.stderr


def test_file_urls_are_paths():
    assert _unquote(WORD.match("file:///a%20b/c.png")) == "/a b/c.png"


def test_undo_save_and_load(chat, tmp_path):
    result = chat(
        "/undo",
        "hello",
        "/save talk.json",
        "/undo",
        "/save empty.json",
        "/load talk.json",
        "/save again.json",
        "/clear",
        "/undo",
    )
    assert result.stderr.splitlines() == ["nothing to undo", "removed the last exchange", "nothing to undo"]
    assert json.loads(Path("empty.json").read_text())["turns"] == []
    assert Path("again.json").read_text() == Path("talk.json").read_text()
    assert json.loads(Path("talk.json").read_text())["turns"][0]["text"] == "hello"
    chat("and now", "/save more.json", options=["--load", "talk.json"])
    assert len(json.loads(Path("more.json").read_text())["turns"]) == 2


def test_mistakes_are_reported_and_leave_the_conversation_unchanged(chat):
    result = chat(
        "hello", "/dance", "/load none.json", "/save", "/save no/such/folder.json", "/save talk.json", "/help"
    )
    for words in (
        "/dance: unknown command; /help lists the commands",
        "none.json is not a saved conversation",
        "give a file name",
        "/draw TEXT",
    ):
        assert words in result.stderr
    assert len(json.loads(Path("talk.json").read_text())["turns"]) == 1


def test_an_image_of_a_failed_message_stays_attached(chat, said):
    chat("'my photo.png' " + "a photo of a cat " * 40, "what is it")
    assert [images for _, images, _ in said] == [1, 1]


def test_ctrl_c_stops_an_answer_and_not_the_conversation(chat, monkeypatch):
    def stopped(self, text, images=(), draw=False):
        yield "half"
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "say", stopped)
    result = chat("hello", "/save talk.json")
    assert "half" in result.stdout and "(stopped)" in result.stderr and Path("talk.json").exists()


def test_in_a_terminal_there_is_a_prompt_and_ctrl_c_discards_the_line(monkeypatch):
    asked, lines = [], iter(["hello", KeyboardInterrupt, EOFError])

    def line(prompt):
        asked.append(prompt)
        found = next(lines)
        if isinstance(found, str):
            return found
        raise found

    monkeypatch.setattr(chat_module.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", line)
    assert [chat_module.read_line("> ") for _ in range(3)] == ["hello", "", None] and asked == ["> "] * 3


def test_invalid_options_of_chat_are_errors_before_any_work(chat, tiny, tmp_path):
    assert "no such folder" in chat("hello", options=["-o", "nowhere"], code=1).stderr
    result = CliRunner().invoke(cli, ["chat", "--bundle", str(tiny)], input="hello\n")
    assert result.exit_code == 1 and "was not trained on dialogues" in result.stderr


def test_unreadable_images_are_reported_and_not_sent_as_text(chat, said):
    for name in ("a.heic", "a.AVIF", "a.jxl", "a.cr2", "a.png"):
        Path(name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
        result = chat(f"{name} what is it")
        assert f"Error: {name}: " in result.stderr and said == []


def test_a_pipe_with_an_image_ending_is_reported(chat, said):
    os.mkfifo("a.png")
    assert "Error: a.png: " in chat("a.png what is it").stderr and said == []


@pytest.mark.parametrize("where", ["render", "encode", "draw_codes"])
def test_ctrl_c_stops_a_drawing_and_not_the_chat(chat, monkeypatch, where):
    def stopped(*_args, **_options):
        raise KeyboardInterrupt

    if where == "draw_codes":
        monkeypatch.setattr("seed_edge.runtime.conversation.sample_codes", stopped)
    else:
        monkeypatch.setattr(SeedEdge, where, stopped)
    result = chat("'my photo.png' hello" if where == "encode" else "/draw a fox", "/save talk.json")
    assert "(stopped)" in result.stderr and Path("talk.json").exists() and "Traceback" not in result.output
    turns = json.loads(Path("talk.json").read_text())["turns"]
    assert len(turns) == (where == "render")  # of what was not answered there is no turn


def test_images_of_a_stopped_message_stay_attached(chat, said, monkeypatch):
    encode, calls = SeedEdge.encode, []

    def once(self, images):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(SeedEdge, "encode", once)
    chat("'my photo.png' hello", "again")
    assert [images for _, images, _ in said] == [1, 1]


def test_bytes_that_are_not_utf8_are_replaced_with_a_note(tiny, chat, said):
    chat("warm up")
    said.clear()
    result = CliRunner().invoke(
        cli, ["chat", "--bundle", "bundle", "-q"], input=b"a \xff fox\n/draw \xfe\n\xff.png\n"
    )
    assert result.exit_code == 0, result.output
    assert [text for text, *_ in said] == ["a \ufffd fox", "\ufffd", "\ufffd.png"] and result.stderr.count(
        "not UTF-8 were replaced"
    ) == 3


def test_a_line_of_megabytes_is_ignored(chat, said):
    result = chat("x" * 10_000_000, "hello", "\x00", "/" + "y" * 6000)
    assert "ignored a line of over" in result.stderr and said[0][0] == "hello" and len(result.output) < 10_000


@pytest.mark.parametrize(
    "line",
    [
        "file://[",
        "'file://[x'",
        "/image \x00",
        "/save a\x00b",
        "/load a\x00b",
        "/image",
        "/load",
        "/draw",
        "/image .",
        "/save .",
    ],
)
def test_invalid_lines_are_one_line_errors(chat, line):
    result = chat(line, "/save talk.json")
    assert Path("talk.json").exists() and "Traceback" not in result.output
    assert all(told.isprintable() for told in result.stderr.splitlines())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"my own notes",
        b"{}",
        b'{"format": 1}',
        b'{"format": 2, "turns": []}',
        b"[]",
        b"\x89PNG\r\n\x1a\n",
        b'{"format": true, "turns": []}',
    ],
)
@pytest.mark.parametrize("link", [False, True])
def test_nothing_but_a_saved_conversation_is_replaced(chat, content, link):
    Path("notes").write_bytes(content)
    if link:
        Path("link").symlink_to("notes")
    result = chat("hello", f"/save {'link' if link else 'notes'}")
    assert "not a saved conversation" in result.stderr and Path("notes").read_bytes() == content
    assert not [path for path in os.listdir() if path.endswith(".partial")]


def test_a_conversation_is_saved_over_an_older_one_and_into_devices(chat):
    chat("hello", "/save talk.json", "and more", "/save talk.json", "/save /dev/null")
    assert len(json.loads(Path("talk.json").read_text())["turns"]) == 2


HOSTILE = [
    "[" * 100_000, '{"a":' * 100_000, '{"format": 1e400, "turns": []}', '{"format": 1, "turns": {}}', '{"format": 1, "turns": [3]}', '{"format": true, "turns": []}',
    '{"format": 1, "turns": [{"text": 3, "images": [], "answer": []}]}', '{"format": 1, "turns": [{"text": "a", "images": {}, "answer": []}]}',
    '{"format": 1, "turns": [{"text": "a", "images": [[0, 1, 2, true]], "answer": []}]}', '{"format": 1, "turns": [{"text": "a", "images": [[0, 1, 2, 3.0]], "answer": []}]}',
    '{"format": 1, "turns": [{"text": "a", "images": [[0, 1, 2, 99999999999999999999]], "answer": []}]}', '{"format": 1, "turns": [{"text": "a", "images": [[[0], 1]], "answer": []}]}',
    '{"format": 1, "turns": [{"text": "a", "images": [], "answer": [null]}]}', '{"format": 1, "turns": [{"text": "a", "images": [], "answer": "ab"}]}', "\x00", "",
    '{"format": 1, "turns": [{"text": "a", "images": [], "answer": [], "\\u001b[31m": 1}]}', '{"format": 1, "turns": [{"text": "a", "images": [[' + "9" * 5000 + "]]}]}",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_conversation_file_leaves_the_conversation_unchanged(chat, number):
    Path("other.json").write_text(HOSTILE[number])
    result = chat("hello", "/load other.json", "/save talk.json")
    (line,) = result.stderr.splitlines()
    assert (
        line.startswith("Error: other.json is not a saved conversation")
        and line.isprintable()
        and len(line) < 500
    )
    assert json.loads(Path("talk.json").read_text())["turns"][0]["text"] == "hello"
    assert "is not a saved conversation" in chat("x", options=["--load", "other.json"], code=1).stderr


@pytest.mark.parametrize("kind", ["pipe", "device", "huge"])
def test_a_conversation_is_read_only_from_a_regular_file(chat, kind):
    if kind == "pipe":
        os.mkfifo("other")
    elif kind == "device":
        Path("other").symlink_to("/dev/zero")
    else:
        with open("other", "wb") as file:
            file.truncate(1 << 40)
    assert "Error: other is not a saved conversation" in chat("/load other").stderr
