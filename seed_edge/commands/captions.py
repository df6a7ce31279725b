"""Where captions of many files go: a file of JSON lines, or a text file beside each image; both can be gone on with."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import click

from seed_edge.errors import ImageError
from seed_edge.atomic import replacing

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LONGEST_LINE = 1 << 20


class Sink(Protocol):
    """Takes captions, and knows which images have theirs."""

    def has(self, path: Path) -> bool:
        """Whether the image has its caption already."""

    def put(self, path: Path, caption: str) -> None:
        """Keep a caption; it is on disk, whole, when this returns."""


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
            click.echo(json.dumps({"image": str(path), "caption": caption}, ensure_ascii=False))
        else:
            click.echo(caption if self.alone else f"{path}\t{' '.join(caption.split())}")  # a line for each


class Sidecars:
    """A text file beside each image: `photo.jpg` -> `photo.txt`."""

    def __init__(self, ending: str, resume: bool, overwrite: bool) -> None:
        self.ending, self.resume, self.overwrite = "." + ending.lstrip("."), resume, overwrite

    def has(self, path: Path) -> bool:
        if not self._beside(path).exists() or self.overwrite:
            return False
        if self.resume:
            return True
        raise click.ClickException(f"{self._beside(path)} exists already; go on with --resume, or replace with --overwrite")

    def put(self, path: Path, caption: str) -> None:
        with replacing(self._beside(path)) as partial:
            partial.write_text(caption + "\n", "utf-8")

    def _beside(self, path: Path) -> Path:
        return path.with_suffix(self.ending)


class Lines:
    """A file of JSON lines, `image` and `caption`; written line by line, and by one process at a time."""

    def __init__(self, file: IO[bytes], done: set[str]) -> None:
        self.file, self.done = file, done

    def has(self, path: Path) -> bool:
        return str(path) in self.done

    def put(self, path: Path, caption: str) -> None:
        line = json.dumps({"image": str(path), "caption": caption}, ensure_ascii=False)
        rest = line.encode("utf-8", "surrogateescape") + b"\n"
        try:
            while rest:  # past the buffer, which would try again when the file is closed
                rest = rest[os.write(self.file.fileno(), rest) :]
        except OSError as error:
            why = f"{self.file.name}: {error.strerror}"
            raise click.ClickException(f"{why}; what is written so far stays, make room and go on with --resume") from error

    @classmethod
    @contextmanager
    def opened(cls, path: Path, resume: bool, overwrite: bool) -> Iterator[Lines]:
        """Open for writing; what a killed process left half written at the end is cut off."""
        if path.exists() and not (resume or overwrite):
            raise click.ClickException(f"{path} exists already; go on with --resume, or replace with --overwrite")
        with open(path, "ab+") as file:
            _lock(file, path)
            if overwrite:
                file.truncate(0)
            done, end = _done(file, path)
            file.truncate(end)
            yield cls(file, done)
            os.fsync(file.fileno())


def _lock(file: IO[bytes], path: Path) -> None:
    """Keep other processes out until the file is closed, by whatever ends this one."""
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise click.ClickException(f"{path} is being written by another process; wait, or choose another --out") from error


def _done(file: IO[bytes], path: Path) -> tuple[set[str], int]:
    """Images that have their line, and where the last whole line ends."""
    done, end = set(), 0
    file.seek(0)
    while line := file.readline(LONGEST_LINE):
        if not line.endswith(b"\n"):
            break
        try:
            record: Any = json.loads(line)
            done.add(str(record["image"]))
        except (ValueError, KeyError, TypeError):
            raise click.ClickException(f"{path} holds lines that this program did not write; choose another --out") from None
        end = file.tell()
    return done, end


class Pace:
    """A line on stderr that tells how far it is, how fast it goes and how long it takes still; nothing where nobody looks."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.total, self.shown, self.done = total, not quiet and sys.stderr.isatty(), 0
        self.started = time.monotonic()

    def step(self) -> None:
        """One more is done."""
        self.done += 1
        spent = time.monotonic() - self.started
        if self.shown:
            rate = self.done / spent if spent else 0.0
            left = (self.total - self.done) / rate if rate else 0.0
            click.echo(f"\r{self.done:,}/{self.total:,}  {rate:.1f}/s  {_clock(left)} left \033[K", err=True, nl=False)

    def end(self) -> None:
        """Take the line away."""
        if self.shown:
            click.echo("\r\033[K", err=True, nl=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def chosen_images(names: tuple[str, ...], stdin0: bool) -> list[Path]:
    """Image files that were asked for; folders are searched.

    Raises:
        ImageError: nothing is there to caption.
    """
    from seed_edge.runtime.many import images_in

    if stdin0:
        with click.open_file("-", "rb") as file:
            told: bytes = file.read()
        names = (*names, *filter(None, told.decode("utf-8", "surrogateescape").split("\0")))
    found: list[Path] = []
    for name in names:
        path = Path(name)
        inside = list(images_in(path)) if path.is_dir() else [path]
        if not inside:
            raise ImageError(f"{path} holds no images")
        found += inside
    return found
