import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from seed_edge.cli import cli
from seed_edge.commands import chatting
from seed_edge.commands.chatting import WORD, _path
from seed_edge.manifest import MANIFEST
from seed_edge.runtime.conversation import Conversation


@pytest.fixture
def chat(tiny, tmp_path, monkeypatch):
    """Chat in an empty folder with the tiny bundle, said to have been taught to."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, "bundle")
    manifest = json.loads(Path("bundle", MANIFEST).read_text())
    manifest["language"]["prompts"] |= {"turn": "U: {images}{text}\nA:", "before_answer": " ", "between_turns": "\n"}
    Path("bundle", MANIFEST).write_text(json.dumps(manifest))
    Image.new("RGB", (30, 30), "red").save("my photo.png")

    def call(*lines, options=(), code=0):
        result = CliRunner().invoke(cli, ["chat", "--bundle", "bundle", "-q", *options], input="\n".join(lines) + "\n")
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


def test_messages_are_answered_and_pictures_kept(chat, said):
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
def test_files_dropped_on_the_terminal_go_with_the_message(chat, said, line, message):
    chat(line)
    assert said == [(*message, False)]


def test_an_image_waits_for_the_next_message(chat, said):
    result = chat("/image my photo.png", "'my photo.png'", "what are these", "/image missing.png", "well")
    assert [(text, images) for text, images, _ in said] == [("what are these", 2), ("well", 0)]
    assert "2 with the next message" in result.stderr and "Error: missing.png" in result.stderr


def test_file_addresses_are_followed():
    assert _path(WORD.match("file:///a%20b/c.png")) == "/a b/c.png"


def test_an_exchange_is_taken_back_and_a_conversation_kept(chat, tmp_path):
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
    assert result.stderr.splitlines() == ["nothing to take back", "taken back", "nothing to take back"]
    assert json.loads(Path("empty.json").read_text())["turns"] == []
    assert Path("again.json").read_text() == Path("talk.json").read_text()
    assert json.loads(Path("talk.json").read_text())["turns"][0]["text"] == "hello"
    chat("and now", "/save more.json", options=["--load", "talk.json"])
    assert len(json.loads(Path("more.json").read_text())["turns"]) == 2


def test_mistakes_are_told_and_lose_nothing(chat):
    result = chat("hello", "/dance", "/load none.json", "/save", "/save no/such/folder.json", "/save talk.json", "/help")
    for words in ("/dance is no command; /help tells them", "none.json is no conversation", "say which file", "/draw TEXT"):
        assert words in result.stderr
    assert len(json.loads(Path("talk.json").read_text())["turns"]) == 1


def test_an_image_that_could_not_be_sent_waits_again(chat, said):
    chat("'my photo.png' " + "a photo of a cat " * 40, "what is it")
    assert [images for _, images, _ in said] == [1, 1]


def test_ctrl_c_stops_an_answer_and_not_the_conversation(chat, monkeypatch):
    def stopped(self, text, images=(), draw=False):
        yield "half"
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "say", stopped)
    result = chat("hello", "/save talk.json")
    assert "half" in result.stdout and "(stopped)" in result.stderr and Path("talk.json").exists()


def test_at_a_terminal_there_is_a_prompt_and_ctrl_c_gives_up_the_line(monkeypatch):
    asked, lines = [], iter(["hello", KeyboardInterrupt, EOFError])

    def line(prompt):
        asked.append(prompt)
        found = next(lines)
        if isinstance(found, str):
            return found
        raise found

    monkeypatch.setattr(chatting.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", line)
    assert [chatting.read_line("> ") for _ in range(3)] == ["hello", "", None] and asked == ["> "] * 3


def test_what_cannot_be_is_refused_at_once(chat, tiny, tmp_path):
    assert "no such folder" in chat("hello", options=["-o", "nowhere"], code=1).stderr
    result = CliRunner().invoke(cli, ["chat", "--bundle", str(tiny)], input="hello\n")
    assert result.exit_code == 1 and "was not taught to converse" in result.stderr
