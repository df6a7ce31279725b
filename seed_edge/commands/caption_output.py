"""Where captions of many files go: a file of JSON lines, or a text file beside each image; both can be gone
on with.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import click

from seed_edge.atomic import OPEN_FLAGS, create_temporary, is_special, replacing, same_file, write_new
from seed_edge.commands.common import print_json
from seed_edge.commands.config import logs_json, write_stderr
from seed_edge.display import json_line, printable
from seed_edge.errors import ImageError, SeedEdgeError
from seed_edge.file_lock import lock_file
from seed_edge.inputs import parse_json, read_text
from seed_edge.output_checks import check_not_input, write_error_message

MAX_LINE_BYTES = 1 << 20
"""Bytes of a line of captions, with its end."""
MAX_SIDECAR = 1 << 16
"""Bytes of a text file that can be a caption."""
SIDECAR_ENDINGS = frozenset(
    (
        "cap",
        "caption",
        "captions",
        "desc",
        "description",
        "label",
        "labels",
        "md",
        "prompt",
        "tag",
        "tags",
        "text",
        "txt",
    )
)
"""Endings, without dot, of text files beside images. None is that of a file which anything else
writes there.
"""
BEFORE_ENDING = re.compile(r"[A-Za-z0-9_-]{1,32}")
"""What may stand before the ending, with a dot between: a language, a model."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

NEVER_READ = 2
"""Of `_unlikeliness`."""

OPENING, BETWEEN, CLOSING = b'{"image": "', b'", "caption": "', b'"}'
"""What `json_line` writes around the two strings of a record."""
BODY = rb'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*'
CUT = rb"(?:\\(?:u[0-9a-fA-F]{0,3})?)?"
"""An escape that was not written to its end."""


class CaptionNotSaved(SeedEdgeError):
    """The caption of one image cannot be kept where it was asked for; those of other images can."""


class Sink(Protocol):
    """Takes captions, and knows which images have theirs."""

    def has(self, path: Path) -> bool:
        """Whether the image has its caption already.

        Raises:
            CaptionNotSaved: it can have none there.
        """

    def put(self, path: Path, caption: str) -> None:
        """Keep a caption; it is on disk, whole, when this returns.

        Raises:
            CaptionNotSaved: it cannot be kept.
        """


class Printed:
    """Captions on stdout."""

    def __init__(self, as_json: bool, alone: bool) -> None:
        """
        Args:
            alone: there is one image, and its name need not be said.
        """
        self.as_json, self.alone = as_json, alone

    def has(self, path: Path) -> bool:
        return False

    def put(self, path: Path, caption: str) -> None:
        if self.as_json:
            print_json(_record(path, caption))
        elif self.alone:
            click.echo("".join(letter if letter in "\n\t" else printable(letter) for letter in caption))
        else:
            click.echo(f"{printable(str(path))}\t{printable(' '.join(caption.split()))}")  # a line for each


def _record(path: Path, caption: str) -> dict[str, str]:
    return {"image": str(path), "caption": caption}


def sidecar_ending(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The ending of sidecars with its dot: `txt` -> `.txt`, `en.txt` -> `.en.txt`; None as it is.

    Raises:
        click.BadParameter: text files beside images do not end so.
    """
    if value is None:
        return None
    *before, last = value.removeprefix(".").split(".")
    if last.lower() not in SIDECAR_ENDINGS or not all(map(BEFORE_ENDING.fullmatch, before)):
        raise click.BadParameter(
            f"{value!r} is no ending of a text file beside an image; give one of "
            f"{', '.join(sorted(SIDECAR_ENDINGS))}, "
            "or a word and one of these, such as en.txt"
        )
    return "." + value.removeprefix(".")


class Sidecars:
    """A text file beside each image: `photo.jpg` -> `photo.txt`, or `photo.jpg.txt` with full names."""

    def __init__(
        self,
        ending: str,
        full_names: bool,
        resume: bool,
        overwrite: bool,
        images: Sequence[Path],
        inputs: Iterable[Path],
    ) -> None:
        """
        Args:
            ending: with its dot.
            images: all that get one.
            inputs: other files that are read; none of them is replaced, nor is an image.
        """
        self.ending, self.full_names, self.resume, self.overwrite = ending, full_names, resume, overwrite
        self._inputs = {found for path in (*images, *inputs) if (found := _identity(path)) is not None}
        self._of: dict[Path, Path] = {}
        for image in sorted(images, key=_unlikeliness):
            self._of.setdefault(self._beside(image), image)
        self._seen: set[Path] = set()
        self._written: set[tuple[int, int]] = set()

    def has(self, path: Path) -> bool:
        if path in self._seen:
            return True
        self._seen.add(path)
        beside = self._beside(path)
        owner = self._of[beside]
        if owner != path:
            if same_file(owner, path):
                return True
            if _unlikeliness(path) == NEVER_READ:
                return False  # it fails when it is opened, for a better reason
            raise CaptionNotSaved(self._shared(path))
        found = self._found(beside)
        if found is None:
            if os.path.isdir(beside.parent) and not os.access(beside.parent, os.W_OK):
                raise CaptionNotSaved(
                    f"{path}: the folder cannot be written, so there can be no {beside.name}"
                )
            return False
        if self.overwrite:
            return False
        if not self.resume:
            raise click.ClickException(
                f"{beside} exists already; go on with --resume, or replace with --overwrite"
            )
        if not os.path.isfile(beside):
            raise CaptionNotSaved(f"{path}: {beside} exists already, and is no file")
        return True

    def _shared(self, path: Path) -> str:
        beside = self._beside(path)
        return f"{path}: {beside} is for {self._of[beside]}; --full-names writes one for each"

    def put(self, path: Path, caption: str) -> None:
        beside = self._beside(path)
        if self._of[beside] != path:
            raise CaptionNotSaved(self._shared(path))

        def write(partial: Path) -> None:
            partial.write_bytes(f"{caption}\n".encode())

        try:
            if self._found(beside) is None:
                write_new(beside, write)
            else:
                with replacing(beside) as partial:
                    write(partial)
        except FileExistsError:
            raise CaptionNotSaved(f"{path}: {beside} exists already; it was made a moment ago") from None
        except OSError as error:
            if error.errno in DISK_FULL:
                raise click.ClickException(
                    f"{write_error_message(error, beside)}; make room and go on with --resume"
                ) from error
            raise CaptionNotSaved(f"{path}: {write_error_message(error, beside)}") from error
        found = _identity(beside)
        if found is not None:
            self._written.add(found)

    def _beside(self, path: Path) -> Path:
        return path.with_name(path.name + self.ending) if self.full_names else path.with_suffix(self.ending)

    def _found(self, beside: Path) -> os.stat_result | None:
        """What is there, None for nothing.

        Raises:
            CaptionNotSaved: an input is, or what cannot be a caption and yet is to be replaced; or the name
                is none.
        """
        try:
            found = beside.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CaptionNotSaved(write_error_message(error, beside)) from error
        if _identity(beside) in self._inputs:
            raise CaptionNotSaved(f"{beside} is itself read by this command, and is not written to")
        if self.overwrite:
            if (found.st_dev, found.st_ino) in self._written:
                raise CaptionNotSaved(
                    f"{beside} holds the caption of another image already; --full-names writes one for each"
                )
            if not stat.S_ISREG(found.st_mode):
                raise CaptionNotSaved(f"{beside} is a link or no plain file, and is not replaced")
            if "\0" in read_text(beside, MAX_SIDECAR, CaptionNotSaved):
                raise CaptionNotSaved(f"{beside} is no text, and is not replaced")
        return found


def _unlikeliness(image: Path) -> int:
    """How unlikely a file is one that is read, by its ending: 0, 1 where that takes a plug-in,
    `NEVER_READ`.
    """
    from seed_edge.image_formats import EXTENSIONS_BY_FORMAT

    kind = next(
        (kind for kind, endings in EXTENSIONS_BY_FORMAT.items() if image.suffix.lower() in endings.split()),
        "",
    )
    return NEVER_READ if kind in ("others", "RAW") else int(kind in ("HEIC", "AVIF"))


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from any other, whatever its names; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


class Lines:
    """A file of JSON lines, `image` and `caption`; written line by line, and by one process at a time."""

    def __init__(self, descriptor: int, path: Path, done: set[str]) -> None:
        self.descriptor, self.path, self.done = descriptor, path, done

    def has(self, path: Path) -> bool:
        return str(path) in self.done

    def put(self, path: Path, caption: str) -> None:
        line = json_line(_record(path, caption)).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise CaptionNotSaved(
                f"{path}: its line has {len(line):,} bytes, over the limit of {MAX_LINE_BYTES:,}"
            )
        self._write(line)

    def _write(self, rest: bytes) -> None:
        try:
            while rest:  # past the buffer, which would try again when the file is closed
                rest = rest[os.write(self.descriptor, rest) :]
        except BrokenPipeError:
            raise click.ClickException(f"{self.path}: nobody reads it any more") from None
        except OSError as error:
            message = f"{self.path}: {error.strerror}"
            raise click.ClickException(
                f"{message}; what is written so far stays, make room and go on with --resume"
            ) from error

    @classmethod
    @contextmanager
    def opened(
        cls, path: Path, resume: bool, overwrite: bool, inputs: Iterable[Path] = ()
    ) -> Iterator[Lines]:
        """Open for writing. A file that is gone on with holds captions and nothing else.

        A line that a killed process left half written at its end is cut off. What `overwrite` replaces is
        left as it is under other names that it may have. Pipes and devices are written to.

        Args:
            inputs: files that are read; none of them can be the output.

        Raises:
            SeedEdgeError: it is an input.
            click.ClickException: it cannot be written, or holds something else.
        """
        check_not_input(path, inputs, "--output")
        if os.path.isdir(path):
            raise click.ClickException(f"{path} is a folder; give a file name")
        if is_special(path):
            with _descriptor(path, os.O_WRONLY) as descriptor:
                yield cls(descriptor, path, set())
            return
        target = Path(os.path.realpath(path))  # a link stays one
        if not (resume or overwrite):
            with _created(target, path) as descriptor:
                yield cls(descriptor, path, set())
            return
        with _descriptor(target, os.O_RDWR | os.O_CREAT | os.O_APPEND) as descriptor:
            _lock(descriptor, path)
            if overwrite and os.fstat(descriptor).st_size:
                with _replaced(target, path) as fresh:
                    yield cls(fresh, path, set())
                return
            lines = cls(descriptor, path, set())
            lines._go_on()
            yield lines
            os.fsync(descriptor)

    def _go_on(self) -> None:
        """Find the images that have their line; end the last line, or cut it off where it is only begun.

        Raises:
            click.ClickException: the file holds anything else; it is left as it is.
        """
        with open(os.dup(self.descriptor), "rb") as file:
            file.seek(0)
            rest = b""
            for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
                rest = b"" if line.endswith(b"\n") else line
                image = _image_of(line, self.path)
                if image is not None:
                    self.done.add(image)
                elif rest and _is_begun(rest, alone=not self.done) and not file.read(1):
                    os.ftruncate(self.descriptor, file.tell() - len(rest))
                    return
                else:
                    raise click.ClickException(
                        f"{self.path} holds lines that this program did not write; choose another --output"
                    )
            if rest:
                self._write(b"\n")


@contextmanager
def _descriptor(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | OPEN_FLAGS, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _created(target: Path, path: Path) -> Iterator[int]:
    """A new file, locked."""
    try:
        with _descriptor(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND) as descriptor:
            _lock(descriptor, path)
            yield descriptor
            os.fsync(descriptor)
    except FileExistsError:
        raise click.ClickException(
            f"{path} exists already; go on with --resume, or replace with --overwrite"
        ) from None


@contextmanager
def _replaced(target: Path, path: Path) -> Iterator[int]:
    """A new file, locked, in place of one that is there."""
    partial = create_temporary(target)
    try:
        with _descriptor(partial, os.O_RDWR | os.O_APPEND) as descriptor:
            _lock(descriptor, path)
            os.replace(partial, target)
            yield descriptor
            os.fsync(descriptor)
    finally:
        partial.unlink(missing_ok=True)


def _lock(descriptor: int, path: Path) -> None:
    """Keep other processes out until the file is closed, by whatever ends this one."""
    try:
        lock_file(descriptor)
    except OSError as error:
        raise click.ClickException(
            f"{path} is being written by another process; wait, or choose another --output"
        ) from error


def _image_of(line: bytes, path: Path) -> str | None:
    """Name of the image of a record; None for a line that is none."""
    try:
        record = parse_json(line.decode(), str(path))
    except (UnicodeDecodeError, SeedEdgeError):
        return None
    if not isinstance(record, dict) or record.keys() != {"image", "caption"}:
        return None
    image, caption = record["image"], record["caption"]
    return image if isinstance(image, str) and isinstance(caption, str) else None


def _is_begun(line: bytes, alone: bool) -> bool:
    """Whether a line is the beginning of a record as `Lines` writes it, and not the whole.

    Args:
        alone: nothing else of the file tells whose it is; then the beginning has to.
    """
    try:
        codecs.getincrementaldecoder("utf-8")().decode(line)
    except UnicodeDecodeError:
        return False
    first, second = re.escape(OPENING) + BODY, re.escape(BETWEEN) + BODY
    forms = [
        first + CUT,
        first + _beginnings(BETWEEN),
        first + second + CUT,
        first + second + _beginnings(CLOSING),
    ]
    if not alone:
        forms.append(_beginnings(OPENING))
    return any(re.fullmatch(form, line) for form in forms)


def _beginnings(text: bytes) -> bytes:
    """Pattern of all beginnings of a text but the whole."""
    return b"(?:" + b"|".join(re.escape(text[:end]) for end in range(len(text))) + b")"


class FileProgress:
    """Tells on stderr how far it is, how fast it goes and how long it takes still.

    At a terminal in one line that is rewritten, elsewhere in a line every `EVERY` seconds.
    """

    EVERY = 30.0
    """Seconds."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.total, self.shown, self.done = total, not quiet, 0
        self.rewritten = self.shown and sys.stderr.isatty() and not logs_json()
        self.started = self.last_line = time.monotonic()

    def step(self) -> None:
        """One more is done."""
        self.done += 1
        now = time.monotonic()
        spent = now - self.started
        rate = self.done / spent if spent else 0.0
        left = (self.total - self.done) / rate if rate else 0.0
        line = f"{self.done:,}/{self.total:,}  {rate:.1f}/s  {_clock(left)} left"
        if self.rewritten:
            click.echo(f"\r{line} \033[K", err=True, nl=False)
        elif self.shown and now - self.last_line >= self.EVERY:
            self.last_line = now
            write_stderr(line)

    def clear(self) -> None:
        """Take the line away, so that another can be written there."""
        if self.rewritten:
            click.echo("\r\033[K", err=True, nl=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@dataclass
class Chosen:
    """What there is to caption."""

    paths: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Folders that cannot be read and files that are no regular ones, with the reason."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Endings of files in folders that are none of images, and how many have them."""


def find_inputs(names: tuple[str, ...], stdin0: bool) -> Chosen:
    """Image files that were asked for; folders are searched.

    Raises:
        ImageError: nothing is there to caption.
    """
    from seed_edge.runtime.batch import find_images

    if stdin0:
        with click.open_file("-", "rb") as file:
            data: bytes = file.read()
        names = (*names, *filter(None, data.decode("utf-8", "surrogateescape").split("\0")))
    chosen = Chosen()
    for name in names:
        path = Path(name)
        if not os.path.isdir(path):
            chosen.paths.append(path)
            continue
        before = len(chosen.paths), len(chosen.failed)
        chosen.paths += find_images(path, chosen.failed, chosen.left_out)
        if (len(chosen.paths), len(chosen.failed)) == before:
            chosen.failed.append((path, f"{path} holds no images"))
    if not chosen.paths and all(reason.endswith("holds no images") for _, reason in chosen.failed):
        raise ImageError("; ".join(reason for _, reason in chosen.failed) or "no images were named")
    return chosen
