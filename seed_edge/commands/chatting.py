"""`chat`: a conversation at the terminal, with pictures in and out."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import click

from seed_edge.commands.common import Engine, engine_options
from seed_edge.commands.drawing import Brush, brush_of
from seed_edge.commands.pictures import unused, with_diffusion_options, with_finish_options
from seed_edge.errors import SeedEdgeError

if TYPE_CHECKING:
    from typing import Any

    from PIL.Image import Image

    from seed_edge.runtime.conversation import Conversation

WORD = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)"|((?:\\.|[^\s'"\\])+))(?=\s|$)""")
"""A path at the beginning of a line, as terminals write one that is dropped on them."""
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
    help="Folder for pictures.  [default: .]",
)
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="Of words; 0: the likeliest.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first answer; it counts up.")
@click.option("--load", type=click.Path(path_type=Path), help="Go on with a conversation that /save wrote.")
@with_diffusion_options
@with_finish_options
@engine_options
def chat(
    output: Path,
    temperature: float,
    seed: int,
    load: Path | None,
    walk: dict[str, Any],
    finish: dict[str, Any],
    engine: Engine,
) -> None:
    """Talk with a model about pictures, and let it draw some. Nothing is kept but what /save writes and pictures.

    Within: /image PATH, /draw TEXT, /undo, /save FILE, /load FILE, /clear, /help, /quit.
    """
    from seed_edge.runtime.conversation import Conversation

    if not output.is_dir():
        raise click.ClickException(f"{output}: no such folder; make it first, or choose another -o")
    with engine.opened() as edge:
        conversation = Conversation(edge, temperature=temperature, seed=seed)
        if load is not None:
            conversation.load(load)
        chat = Chat(conversation, brush_of(edge, engine, walk, finish), output, seed)
        if sys.stdin.isatty():
            engine.note("/help tells what can be done here")
        while chat.going:
            line = read_line(chat.prompt())
            if line is None:
                break
            chat.obey(line)


def read_line(prompt: str) -> str | None:
    """A line of input, None at its end; with the habits of readline at a terminal, and no history kept on disk."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
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


class Chat:
    """What lines do to a conversation."""

    def __init__(self, conversation: Conversation, brush: Brush, folder: Path, seed: int) -> None:
        self.conversation, self.brush, self.folder, self.seed = conversation, brush, folder, seed
        self.going = True
        self._images: list[Image] = []

    def prompt(self) -> str:
        """What stands before the line to be written."""
        return f"({len(self._images)} image{'s' * (len(self._images) > 1)}) > " if self._images else "> "

    def obey(self, line: str) -> None:
        """Do what a line says; mistakes are told, and lose nothing."""
        command, _, rest = line.strip().partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/image": self.attach,
            "/draw": lambda text: self.say(text, draw=True),
            "/undo": lambda _: click.echo("taken back" if self.conversation.undo() else "nothing to take back", err=True),
            "/save": lambda name: self.conversation.save(Path(_named(name))),
            "/load": lambda name: self.conversation.load(Path(_named(name))),
            "/clear": lambda _: self.conversation.clear(),
            "/help": lambda _: click.echo(HELP, err=True),
            "/quit": lambda _: self.leave(),
        }
        try:
            if command in commands:
                commands[command](rest.strip())
            elif command.startswith("/") and not Path(command).exists():
                click.echo(f"{command} is no command; /help tells them", err=True)
            else:
                text = self.take_paths(line)
                if text:
                    self.say(text)
        except (SeedEdgeError, click.ClickException) as error:
            click.echo(f"Error: {error}", err=True)
        except OSError as error:
            click.echo(f"Error: {error.filename or 'a file'}: {error.strerror}", err=True)

    def leave(self) -> None:
        """End."""
        self.going = False

    def attach(self, name: str) -> None:
        """Show an image with the next message."""
        from seed_edge.preprocess import open_image

        match = WORD.fullmatch(name)
        self._images.append(open_image(_path(match) if match else name))
        click.echo(f"{len(self._images)} with the next message", err=True)

    def take_paths(self, line: str) -> str:
        """What is left of a line when the image files it begins with are attached."""
        from seed_edge.runtime.many import ENDINGS

        while (match := WORD.match(line)) is not None:
            path = Path(_path(match))
            if path.suffix.lower() not in ENDINGS or not path.is_file():
                break
            self.attach(str(path))
            line = line[match.end() :]
        return line.strip()

    def say(self, text: str, draw: bool = False) -> None:
        """Send a message and tell the answer as it comes; Ctrl-C stops it."""
        images, self._images = self._images, []
        told, drawn = False, []
        try:
            for piece in self.conversation.say(text, images, draw=draw):
                if isinstance(piece, str):
                    click.echo(piece, nl=False)
                    told = True
                else:
                    drawn.append(piece.tolist())
        except KeyboardInterrupt:
            click.echo(" (stopped)", err=True)
        except SeedEdgeError:
            self._images = images
            raise
        if told:
            click.echo()
        for codes in drawn:  # now, as making pixels may take the language model out of memory
            self.keep(text, codes)

    def keep(self, text: str, codes: list[int]) -> None:
        """Save and show a picture of an answer."""
        path = unused(self.folder / "chat.png")
        seed = self.seed + len(self.conversation.turns) - 1
        self.brush.save(self.brush.picture(codes, seed, path), path, text, [(seed, codes)])
        click.echo(str(path))


def _named(name: str) -> str:
    if not name:
        raise click.ClickException("say which file: /save talk.json")
    match = WORD.fullmatch(name)
    return _path(match) if match else name


def _path(match: re.Match[str]) -> str:
    """The path that a word means: quotes and backslashes taken away, `file:` followed."""
    single, double, bare = match.groups()
    name = single if single is not None else double if double is not None else re.sub(r"\\(.)", r"\1", bare)
    return unquote(urlsplit(name).path) if name.startswith("file://") else name
