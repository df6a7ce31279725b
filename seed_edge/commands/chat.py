"""`chat`: a conversation at the terminal, with pictures in and out."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import click

from seed_edge.commands.common import (
    MAX_SEED,
    TEMPERATURE,
    Integer,
    RuntimeOptions,
    note,
    print_path,
    runtime_options,
)
from seed_edge.commands.draw import ImageWriter, image_writer
from seed_edge.commands.image_output import Output, with_diffusion_options, with_save_options
from seed_edge.display import printable
from seed_edge.errors import PromptError, SeedEdgeError

if TYPE_CHECKING:
    from typing import Any

    from PIL.Image import Image

    from seed_edge.runtime.conversation import Conversation

WORD = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)"|((?:\\.|[^\s'"\\])+))(?=\s|$)""")
"""A path at the beginning of a line, as terminals write one that is dropped on them."""
SURROGATE = re.compile("[\ud800-\udfff]")
MAX_LINE_BYTES = 1 << 16
"""Bytes of a line on stdin that is no terminal."""
MAX_TURNS = 1 << 20
"""Seeds count up from turn to turn."""
HELP = """Write a message. An image goes with it: /image PATH, or drop its file on the terminal.
  /draw TEXT   let the answer be a picture      /undo          take the last exchange back
  /save FILE   keep the conversation            /load FILE     go on with one that was kept
  /clear       begin anew                       /quit          leave (Ctrl-D too); Ctrl-C stops an answer"""


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder of drawn images.  [default: .]",
)
@click.option(
    "--temperature",
    type=TEMPERATURE,
    default=0.0,
    show_default=True,
    help="Sampling temperature; 0 takes the most likely token.",
)
@click.option(
    "-s",
    "--seed",
    type=Integer(0, MAX_SEED - MAX_TURNS),
    default=0,
    show_default=True,
    help="Random seed; one higher for each answer.",
)
@click.option("--load", type=click.Path(path_type=Path), help="Load a conversation that /save wrote.")
@with_diffusion_options
@with_save_options
@runtime_options
def chat(
    output: Path,
    temperature: float,
    seed: int,
    load: Path | None,
    diffusion: dict[str, Any],
    saving: dict[str, Any],
    engine: RuntimeOptions,
) -> None:
    """Chat with a model about images; it can draw images, too. Only drawn images and what /save writes are
    kept.

    Within: /image PATH, /draw TEXT, /undo, /save FILE, /load FILE, /clear, /help, /quit.
    """
    from seed_edge.runtime.conversation import Conversation

    if not output.is_dir():
        raise click.ClickException(f"{output}: no such folder; make it first, or choose another -o")
    terminal = sys.stdin is not None and sys.stdin.isatty()
    with engine.opened() as edge:
        conversation = Conversation(edge, temperature=temperature, seed=seed)
        if load is not None:
            conversation.load(load)
        chat = Chat(conversation, image_writer(edge, engine, diffusion, saving), output, seed)
        if terminal:
            engine.note("/help tells what can be done here")
        while chat.going:
            line = read_line(chat.prompt())
            if line is None:
                break
            chat.obey(line)


def read_line(prompt: str) -> str | None:
    """A line of input, None at its end; with the habits of readline at a terminal, and no history kept on
    disk.

    Bytes that are not text in stdin's encoding come as surrogates, as in file names.
    """
    if sys.stdin is None:
        return None
    if not sys.stdin.isatty():
        return _piped_line()
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  (input() uses it from now on)
    try:
        return input(prompt)
    except EOFError:
        click.echo()
        return None
    except KeyboardInterrupt:  # as in a shell: the line is given up
        click.echo()
        return ""
    except UnicodeDecodeError as error:
        note(f"this line is not text in {error.encoding}, and was left out", quiet=False)
        return ""


def _piped_line() -> str | None:
    line = sys.stdin.buffer.readline(MAX_LINE_BYTES + 1)
    if not line:
        return None
    if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
        while line and not line.endswith(b"\n"):
            line = sys.stdin.buffer.readline(MAX_LINE_BYTES)
        note(f"a line of over {MAX_LINE_BYTES:,} bytes was left out", quiet=False)
        return ""
    return line.rstrip(b"\r\n").decode(sys.stdin.encoding or "utf-8", "surrogateescape")


class Chat:
    """What lines do to a conversation."""

    def __init__(self, conversation: Conversation, writer: ImageWriter, folder: Path, seed: int) -> None:
        self.conversation, self.writer, self.folder, self.seed = conversation, writer, folder, seed
        self.going = True
        self._images: list[Image] = []

    def prompt(self) -> str:
        """What stands before the line to be written."""
        return f"({len(self._images)} image{'s' * (len(self._images) > 1)}) > " if self._images else "> "

    def obey(self, line: str) -> None:
        """Run a line: a command or a message. Errors are printed and change nothing."""
        command, _, rest = line.strip().partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/image": self.attach,
            "/draw": lambda text: self.say(text, draw=True),
            "/undo": lambda _: note(
                "taken back" if self.conversation.undo() else "nothing to take back", quiet=False
            ),
            "/save": lambda name: self.conversation.save(_named(name)),
            "/load": lambda name: self.conversation.load(_named(name)),
            "/clear": lambda _: self.conversation.clear(),
            "/help": lambda _: click.echo(HELP, err=True),
            "/quit": lambda _: self.leave(),
        }
        try:
            if command in commands:
                commands[command](rest.strip())
            elif command.startswith("/") and not os.path.exists(command):
                note(f"{command} is no command; /help tells them", quiet=False)
            else:
                text = self.attach_leading_paths(line)
                if text:
                    self.say(text)
        except KeyboardInterrupt:
            note("(stopped)", quiet=False)
        except (SeedEdgeError, click.ClickException) as error:
            note(f"Error: {error}", quiet=False)
        except OSError as error:
            note(f"Error: {error.filename or 'a file'}: {error.strerror}", quiet=False)

    def leave(self) -> None:
        """End."""
        self.going = False

    def attach(self, name: str) -> None:
        """Show an image with the next message."""
        from seed_edge.preprocess import open_image

        match = WORD.fullmatch(name)
        self._images.append(open_image(_path(match) if match else name))
        note(f"{len(self._images)} with the next message", quiet=False)

    def attach_leading_paths(self, line: str) -> str:
        """What is left of a line when the image files it begins with are attached."""
        from seed_edge.image_formats import IMAGE_EXTENSIONS

        while (match := WORD.match(line)) is not None:
            path = _path(match)
            if (
                os.path.splitext(path)[1].lower() not in IMAGE_EXTENSIONS
                or not os.path.exists(path)
                or os.path.isdir(path)
            ):
                break
            self.attach(path)
            line = line[match.end() :]
        return line.strip()

    def say(self, text: str, draw: bool = False) -> None:
        """Send a message and tell the answer as it comes; Ctrl-C stops it."""
        text, turns = _in_utf8(text), len(self.conversation.turns)
        images, self._images = self._images, []
        printed, drawn = False, []
        try:
            for piece in self.conversation.say(text, images, draw=draw):
                if isinstance(piece, str):
                    click.echo(piece, nl=False)
                    printed = True
                else:
                    drawn.append(piece.tolist())
        except KeyboardInterrupt:
            click.echo(" (stopped)", err=True)
            if len(self.conversation.turns) == turns:  # nothing was answered yet
                self._images = images
        except SeedEdgeError:
            self._images = images
            raise
        if printed:
            click.echo()
        for codes in drawn:  # now, as making pixels may take the language model out of memory
            self.keep(text, codes)

    def keep(self, text: str, codes: list[int]) -> None:
        """Save and show a picture of an answer."""
        output = Output(self.folder / "chat.png", numbered=True)
        seed = self.seed + len(self.conversation.turns) - 1
        path = self.writer.save(self.writer.render(codes, seed, output.path, text), output)
        print_path(path)


def _named(name: str) -> Path:
    """The path behind a command.

    Raises:
        PromptError: there is none.
    """
    if not name:
        raise PromptError("say which file: /save talk.json")
    match = WORD.fullmatch(name)
    path = _path(match) if match else name
    if "\0" in path:
        raise PromptError(f"{printable(path)}: no file can have this name")
    return Path(path)


def _in_utf8(text: str) -> str:
    """A message with invalid UTF-8 replaced by the replacement character, and a note about it."""
    plain = SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
    if plain != text:
        note("bytes that are not UTF-8 were replaced", quiet=False)
    return plain


def _path(match: re.Match[str]) -> str:
    """The path that a word means: quotes and backslashes taken away, `file:` followed."""
    single, double, bare = match.groups()
    name = single if single is not None else double if double is not None else re.sub(r"\\(.)", r"\1", bare)
    if not name.startswith("file://"):
        return name
    try:
        return unquote(urlsplit(name).path)
    except ValueError:  # no address at all
        return name
