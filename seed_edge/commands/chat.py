"""The command `chat`: a conversation in the terminal, with images as input and output."""

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
from seed_edge.commands.image_output import Output, with_diffusion_options, with_save_options
from seed_edge.commands.image_writer import ImageWriter, image_writer
from seed_edge.display import printable
from seed_edge.errors import PromptError, SeedEdgeError

if TYPE_CHECKING:
    from typing import Any

    from PIL.Image import Image

    from seed_edge.runtime.conversation import Conversation

WORD = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)"|((?:\\.|[^\s'"\\])+))(?=\s|$)""")
"""A path at the beginning of a line, as terminals insert a file that is dropped on them."""
SURROGATE = re.compile("[\ud800-\udfff]")
MAX_LINE_BYTES = 1 << 16
"""Maximum size in bytes of a line on a stdin that is not a terminal."""
MAX_TURNS = 1 << 20
"""Maximum number of turns; the seed is one higher for each."""
HELP = """Write a message. To attach an image: /image PATH, or drop its file on the terminal.
  /draw TEXT   answer with an image             /undo          remove the last exchange
  /save FILE   save the conversation            /load FILE     load a saved conversation
  /clear       start a new conversation         /quit          leave (also Ctrl-D); Ctrl-C stops an answer"""


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
    runtime: RuntimeOptions,
) -> None:
    """Chat with a model about images; it can draw images, too. Only drawn images and files of /save are
    stored.

    Commands: /image PATH, /draw TEXT, /undo, /save FILE, /load FILE, /clear, /help, /quit.
    """
    from seed_edge.runtime.conversation import Conversation

    if not output.is_dir():
        raise click.ClickException(f"{output}: no such folder; create it first, or choose another -o")
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    with runtime.open_bundle() as edge:
        conversation = Conversation(edge, temperature=temperature, seed=seed)
        if load is not None:
            conversation.load(load)
        chat = Chat(conversation, image_writer(edge, runtime, diffusion, saving), output, seed)
        if is_terminal:
            runtime.note("/help lists the commands")
        while chat.running:
            line = read_line(chat.prompt())
            if line is None:
                break
            chat.handle(line)


def read_line(prompt: str) -> str | None:
    """Read a line from stdin; None at its end. In a terminal it can be edited by readline; no history is
    stored.

    Bytes that are invalid in stdin's encoding become surrogates, as in file names.
    """
    if sys.stdin is None:
        return None
    if not sys.stdin.isatty():
        return _piped_line()
    with suppress(ImportError):  # not available on Windows
        import readline  # noqa: F401  (used by input() once it is imported)
    try:
        return input(prompt)
    except EOFError:
        click.echo()
        return None
    except KeyboardInterrupt:  # as in a shell: the line is discarded
        click.echo()
        return ""
    except UnicodeDecodeError as error:
        note(f"ignored a line that is not valid {error.encoding}", quiet=False)
        return ""


def _piped_line() -> str | None:
    line = sys.stdin.buffer.readline(MAX_LINE_BYTES + 1)
    if not line:
        return None
    if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
        while line and not line.endswith(b"\n"):
            line = sys.stdin.buffer.readline(MAX_LINE_BYTES)
        note(f"ignored a line of over {MAX_LINE_BYTES:,} bytes", quiet=False)
        return ""
    return line.rstrip(b"\r\n").decode(sys.stdin.encoding or "utf-8", "surrogateescape")


class Chat:
    """Runs the lines of a user: messages and commands."""

    def __init__(self, conversation: Conversation, writer: ImageWriter, folder: Path, seed: int) -> None:
        self.conversation, self.writer, self.folder, self.seed = conversation, writer, folder, seed
        self.running = True
        self._images: list[Image] = []

    def prompt(self) -> str:
        """Return the input prompt, with the number of attached images."""
        return f"({len(self._images)} image{'s' * (len(self._images) > 1)}) > " if self._images else "> "

    def handle(self, line: str) -> None:
        """Run a command or send a message. Errors are printed and leave the conversation unchanged."""
        command, _, rest = line.strip().partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/image": self.attach,
            "/draw": lambda text: self.say(text, draw=True),
            "/undo": lambda _: note(
                "removed the last exchange" if self.conversation.undo() else "nothing to undo", quiet=False
            ),
            "/save": lambda name: self.conversation.save(_parse_path(name)),
            "/load": lambda name: self.conversation.load(_parse_path(name)),
            "/clear": lambda _: self.conversation.clear(),
            "/help": lambda _: click.echo(HELP, err=True),
            "/quit": lambda _: self.stop(),
        }
        try:
            if command in commands:
                commands[command](rest.strip())
            elif command.startswith("/") and not os.path.exists(command):
                note(f"{command}: unknown command; /help lists the commands", quiet=False)
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

    def stop(self) -> None:
        """End the chat."""
        self.running = False

    def attach(self, name: str) -> None:
        """Attach an image to the next message."""
        from seed_edge.preprocess import open_image

        match = WORD.fullmatch(name)
        self._images.append(open_image(_unquote(match) if match else name))
        count = len(self._images)
        note(f"{count} image{'s' * (count > 1)} attached to the next message", quiet=False)

    def attach_leading_paths(self, line: str) -> str:
        """Attach the image files that a line begins with, and return the rest of the line."""
        from seed_edge.image_formats import IMAGE_EXTENSIONS

        while (match := WORD.match(line)) is not None:
            path = _unquote(match)
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
        """Send a message and print the answer while it is generated; Ctrl-C stops it."""
        text, turns = _to_utf8(text), len(self.conversation.turns)
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
            if len(self.conversation.turns) == turns:  # the answer had not begun
                self._images = images
        except SeedEdgeError:
            self._images = images
            raise
        if printed:
            click.echo()
        for codes in drawn:  # after the answer, as decoding may unload the language model
            self.save_image(text, codes)

    def save_image(self, text: str, codes: list[int]) -> None:
        """Decode, save and show an image of an answer."""
        output = Output(self.folder / "chat.png", numbered=True)
        seed = self.seed + len(self.conversation.turns) - 1
        path = self.writer.save(self.writer.render(codes, seed, output.path, text), output)
        print_path(path)


def _parse_path(argument: str) -> Path:
    """Return the path in the argument of a command.

    Raises:
        PromptError: there is none, or it is invalid.
    """
    if not argument:
        raise PromptError("give a file name: /save chat.json")
    match = WORD.fullmatch(argument)
    path = _unquote(match) if match else argument
    if "\0" in path:
        raise PromptError(f"{printable(path)}: a file name cannot contain a NUL character")
    return Path(path)


def _to_utf8(text: str) -> str:
    """Replace invalid UTF-8 in a message by the replacement character, and print a note if there was any."""
    valid = SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
    if valid != text:
        note("bytes that are not UTF-8 were replaced", quiet=False)
    return valid


def _unquote(match: re.Match[str]) -> str:
    """Return the path of a match of `WORD`, without quotes, backslashes and `file:`."""
    single, double, bare = match.groups()
    name = single if single is not None else double if double is not None else re.sub(r"\\(.)", r"\1", bare)
    if not name.startswith("file://"):
        return name
    try:
        return unquote(urlsplit(name).path)
    except ValueError:  # not a valid URL
        return name
