"""Destinations of captions: stdout, a file of JSON lines, or a text file next to each image; the latter two
can be resumed.
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
"""Maximum size of a JSON line in bytes, including the newline."""
MAX_SIDECAR = 1 << 16
"""Maximum size in bytes of a text file that may be replaced by a caption."""
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
"""Endings, without dot, that sidecars may have; no other program writes files of these endings next to
images.
"""
BEFORE_ENDING = re.compile(r"[A-Za-z0-9_-]{1,32}")
"""Words that may precede the ending, separated by dots, such as a language or a model."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

UNSUPPORTED_RANK = 2
"""`_format_rank` of a format that is not supported."""

OPENING, BETWEEN, CLOSING = b'{"image": "', b'", "caption": "', b'"}'
"""Text that `json_line` writes around the two strings of a record."""
BODY = rb'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*'
"""Pattern of the content of a JSON string."""
CUT = rb"(?:\\(?:u[0-9a-fA-F]{0,3})?)?"
"""Pattern of an incomplete escape, or of nothing."""


class CaptionNotSaved(SeedEdgeError):
    """The caption of one image cannot be saved; captions of other images are not affected."""


class CaptionSink(Protocol):
    """A destination of captions."""

    def is_done(self, path: Path) -> bool:
        """Whether the caption of an image exists.

        Raises:
            CaptionNotSaved: no caption can be saved for this image.
        """

    def write(self, path: Path, caption: str) -> None:
        """Save a caption; it is completely written when this returns.

        Raises:
            CaptionNotSaved: the caption cannot be saved.
        """


class StdoutSink:
    """Captions on stdout."""

    def __init__(self, as_json: bool, single: bool) -> None:
        """
        Args:
            single: print the caption without the file name.
        """
        self.as_json, self.single = as_json, single

    def is_done(self, path: Path) -> bool:
        return False

    def write(self, path: Path, caption: str) -> None:
        if self.as_json:
            print_json(_record(path, caption))
        elif self.single:
            click.echo("".join(char if char in "\n\t" else printable(char) for char in caption))
        else:
            click.echo(f"{printable(str(path))}\t{printable(' '.join(caption.split()))}")  # one line


def _record(path: Path, caption: str) -> dict[str, str]:
    return {"image": str(path), "caption": caption}


def sidecar_ending(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return the ending of sidecars with its dot: `txt` -> `.txt`, `en.txt` -> `.en.txt`; None for None.

    Raises:
        click.BadParameter: the ending is not one of a sidecar.
    """
    if value is None:
        return None
    *before, last = value.removeprefix(".").split(".")
    if last.lower() not in SIDECAR_ENDINGS or not all(map(BEFORE_ENDING.fullmatch, before)):
        raise click.BadParameter(
            f"{value!r} is not an ending of sidecar files; give one of {', '.join(sorted(SIDECAR_ENDINGS))}, "
            "or a word and one of these, such as en.txt"
        )
    return "." + value.removeprefix(".")


class SidecarSink:
    """A text file next to each image: `photo.jpg` -> `photo.txt`, or `photo.jpg.txt` with full names."""

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
            ending: ending of the sidecars, with its dot.
            images: all images to caption.
            inputs: other files that are read. No image and no input is ever replaced.
        """
        self.ending, self.full_names, self.resume, self.overwrite = ending, full_names, resume, overwrite
        self._inputs = {file_id for path in (*images, *inputs) if (file_id := _file_id(path)) is not None}
        self._owners: dict[Path, Path] = {}
        for image in sorted(images, key=_format_rank):
            self._owners.setdefault(self._sidecar_path(image), image)
        self._seen: set[Path] = set()
        self._written: set[tuple[int, int]] = set()

    def is_done(self, path: Path) -> bool:
        if path in self._seen:
            return True
        self._seen.add(path)
        sidecar = self._sidecar_path(path)
        owner = self._owners[sidecar]
        if owner != path:
            if same_file(owner, path):
                return True
            if _format_rank(path) == UNSUPPORTED_RANK:
                return False  # opening it fails with a better message
            raise CaptionNotSaved(self._conflict(path))
        if self._existing(sidecar) is None:
            if os.path.isdir(sidecar.parent) and not os.access(sidecar.parent, os.W_OK):
                raise CaptionNotSaved(
                    f"{path}: {sidecar.name} cannot be created, because the folder cannot be written"
                )
            return False
        if self.overwrite:
            return False
        if not self.resume:
            raise click.ClickException(
                f"{sidecar} already exists; continue with --resume, or replace it with --overwrite"
            )
        if not os.path.isfile(sidecar):
            raise CaptionNotSaved(f"{path}: {sidecar} already exists, and is not a file")
        return True

    def _conflict(self, path: Path) -> str:
        sidecar = self._sidecar_path(path)
        return f"{path}: {sidecar} is the sidecar of {self._owners[sidecar]}; use --full-names"

    def write(self, path: Path, caption: str) -> None:
        sidecar = self._sidecar_path(path)
        if self._owners[sidecar] != path:
            raise CaptionNotSaved(self._conflict(path))

        def write_caption(partial: Path) -> None:
            partial.write_bytes(f"{caption}\n".encode())

        try:
            if self._existing(sidecar) is None:
                write_new(sidecar, write_caption)
            else:
                with replacing(sidecar) as partial:
                    write_caption(partial)
        except FileExistsError:
            raise CaptionNotSaved(
                f"{path}: {sidecar} already exists; another process created it a moment ago"
            ) from None
        except OSError as error:
            if error.errno in DISK_FULL:
                raise click.ClickException(
                    f"{write_error_message(error, sidecar)}; free some space and continue with --resume"
                ) from error
            raise CaptionNotSaved(f"{path}: {write_error_message(error, sidecar)}") from error
        file_id = _file_id(sidecar)
        if file_id is not None:
            self._written.add(file_id)

    def _sidecar_path(self, path: Path) -> Path:
        return path.with_name(path.name + self.ending) if self.full_names else path.with_suffix(self.ending)

    def _existing(self, sidecar: Path) -> os.stat_result | None:
        """Return the state of an existing sidecar; None if there is none.

        Raises:
            CaptionNotSaved: it is an input, it must not be replaced because it is not a caption, or its name
                is invalid.
        """
        try:
            state = sidecar.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CaptionNotSaved(write_error_message(error, sidecar)) from error
        if _file_id(sidecar) in self._inputs:
            raise CaptionNotSaved(f"{sidecar} is an input of this command, and is not written to")
        if self.overwrite:
            if (state.st_dev, state.st_ino) in self._written:
                raise CaptionNotSaved(
                    f"{sidecar} holds the caption of another image; use --full-names to write one for each"
                )
            if not stat.S_ISREG(state.st_mode):
                raise CaptionNotSaved(f"{sidecar} is not a regular file, and is not replaced")
            if "\0" in read_text(sidecar, MAX_SIDECAR, CaptionNotSaved):
                raise CaptionNotSaved(f"{sidecar} is not a text file, and is not replaced")
        return state


def _format_rank(image: Path) -> int:
    """Rank an image by its ending: 0 for a format that is always read, 1 for one that may need a plug-in,
    `UNSUPPORTED_RANK` otherwise. If two images share a sidecar, it belongs to the one of lower rank.
    """
    from seed_edge.image_formats import EXTENSIONS_BY_FORMAT

    kind = next(
        (kind for kind, endings in EXTENSIONS_BY_FORMAT.items() if image.suffix.lower() in endings.split()),
        "",
    )
    return UNSUPPORTED_RANK if kind in ("others", "RAW") else int(kind in ("HEIC", "AVIF"))


def _file_id(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file; None if it does not exist."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return state.st_dev, state.st_ino


class JsonLinesSink:
    """A file of JSON lines with `image` and `caption`, written line by line by one process at a time."""

    def __init__(self, descriptor: int, path: Path, done: set[str]) -> None:
        """
        Args:
            descriptor: of the file, open for writing.
            path: path of the file, for messages.
            done: names of the images in the file.
        """
        self.descriptor, self.path, self.done = descriptor, path, done

    def is_done(self, path: Path) -> bool:
        return str(path) in self.done

    def write(self, path: Path, caption: str) -> None:
        line = json_line(_record(path, caption)).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise CaptionNotSaved(
                f"{path}: its line has {len(line):,} bytes, over the limit of {MAX_LINE_BYTES:,}"
            )
        self._write(line)

    def _write(self, rest: bytes) -> None:
        try:
            while rest:  # unbuffered, as a buffer would write again when the file is closed
                rest = rest[os.write(self.descriptor, rest) :]
        except BrokenPipeError:
            raise click.ClickException(f"{self.path}: the reader closed the pipe") from None
        except OSError as error:
            message = f"{self.path}: {error.strerror}"
            raise click.ClickException(
                f"{message}; what was written is saved; free some space and continue with --resume"
            ) from error

    @classmethod
    @contextmanager
    def open(
        cls, path: Path, resume: bool, overwrite: bool, inputs: Iterable[Path] = ()
    ) -> Iterator[JsonLinesSink]:
        """Open a file, a pipe or a device for writing.

        Args:
            resume: append to a file of captions; an incomplete last line of a killed process is removed.
            overwrite: replace the file; its other hard links keep the content.
            inputs: files that are read; none of them can be the output.

        Raises:
            SeedEdgeError: the output is an input.
            click.ClickException: the file cannot be written, exists without `resume` or `overwrite`, or holds
                something other than captions.
        """
        check_not_input(path, inputs, "--output")
        if os.path.isdir(path):
            raise click.ClickException(f"{path} is a folder; give a file name")
        if is_special(path):
            with _descriptor(path, os.O_WRONLY) as descriptor:
                yield cls(descriptor, path, set())
            return
        target = Path(os.path.realpath(path))  # a link stays a link
        if not (resume or overwrite):
            with _create_locked(target, path) as descriptor:
                yield cls(descriptor, path, set())
            return
        with _descriptor(target, os.O_RDWR | os.O_CREAT | os.O_APPEND) as descriptor:
            _lock_or_fail(descriptor, path)
            if overwrite and os.fstat(descriptor).st_size:
                with _replace_locked(target, path) as replacement:
                    yield cls(replacement, path, set())
                return
            lines = cls(descriptor, path, set())
            lines._resume()
            yield lines
            os.fsync(descriptor)

    def _resume(self) -> None:
        """Read the images that have a line; add a missing final newline, or remove an incomplete last line.

        Raises:
            click.ClickException: the file holds something other than captions; it is not changed.
        """
        with open(os.dup(self.descriptor), "rb") as file:
            file.seek(0)
            rest = b""
            for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
                rest = b"" if line.endswith(b"\n") else line
                image = _image_in_record(line, self.path)
                if image is not None:
                    self.done.add(image)
                elif rest and _is_partial_record(rest, first=not self.done) and not file.read(1):
                    os.ftruncate(self.descriptor, file.tell() - len(rest))
                    return
                else:
                    raise click.ClickException(
                        f"{self.path} holds lines that seed-edge did not write; choose another --output"
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
def _create_locked(target: Path, path: Path) -> Iterator[int]:
    """Yield the descriptor of a new, locked file."""
    try:
        with _descriptor(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND) as descriptor:
            _lock_or_fail(descriptor, path)
            yield descriptor
            os.fsync(descriptor)
    except FileExistsError:
        raise click.ClickException(
            f"{path} already exists; continue with --resume, or replace it with --overwrite"
        ) from None


@contextmanager
def _replace_locked(target: Path, path: Path) -> Iterator[int]:
    """Yield the descriptor of a new, locked file that replaces an existing one."""
    partial = create_temporary(target)
    try:
        with _descriptor(partial, os.O_RDWR | os.O_APPEND) as descriptor:
            _lock_or_fail(descriptor, path)
            os.replace(partial, target)
            yield descriptor
            os.fsync(descriptor)
    finally:
        partial.unlink(missing_ok=True)


def _lock_or_fail(descriptor: int, path: Path) -> None:
    """Lock a file against other processes until it is closed.

    Raises:
        click.ClickException: another process holds the lock.
    """
    try:
        lock_file(descriptor)
    except OSError as error:
        raise click.ClickException(
            f"{path} is being written by another process; wait, or choose another --output"
        ) from error


def _image_in_record(line: bytes, path: Path) -> str | None:
    """Return the image of a record; None for a line that is not a record."""
    try:
        record = parse_json(line.decode(), str(path))
    except (UnicodeDecodeError, SeedEdgeError):
        return None
    if not isinstance(record, dict) or record.keys() != {"image", "caption"}:
        return None
    image, caption = record["image"], record["caption"]
    return image if isinstance(image, str) and isinstance(caption, str) else None


def _is_partial_record(line: bytes, first: bool) -> bool:
    """Whether a line is an incomplete record, as `JsonLinesSink` writes it.

    Args:
        first: it is the first line; then it must contain `OPENING`, as no other line shows that seed-edge
            wrote the file.
    """
    try:
        codecs.getincrementaldecoder("utf-8")().decode(line)
    except UnicodeDecodeError:
        return False
    image, caption = re.escape(OPENING) + BODY, re.escape(BETWEEN) + BODY
    patterns = [
        image + CUT,
        image + _proper_prefixes(BETWEEN),
        image + caption + CUT,
        image + caption + _proper_prefixes(CLOSING),
    ]
    if not first:
        patterns.append(_proper_prefixes(OPENING))
    return any(re.fullmatch(pattern, line) for pattern in patterns)


def _proper_prefixes(text: bytes) -> bytes:
    """Return the pattern of all proper prefixes of a text."""
    return b"(?:" + b"|".join(re.escape(text[:end]) for end in range(len(text))) + b")"


class FileProgress:
    """Prints progress on stderr: items done, items per second, estimated time left.

    A terminal gets one line that is rewritten; otherwise a line is printed every `EVERY` seconds.
    """

    EVERY = 30.0
    """Seconds."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.total, self.shown, self.done = total, not quiet, 0
        self.rewritten = self.shown and sys.stderr.isatty() and not logs_json()
        self.started = self.last_line = time.monotonic()

    def step(self) -> None:
        """Count an item as done and print the progress if it is due."""
        self.done += 1
        now = time.monotonic()
        elapsed = now - self.started
        rate = self.done / elapsed if elapsed else 0.0
        remaining = (self.total - self.done) / rate if rate else 0.0
        line = f"{self.done:,}/{self.total:,}  {rate:.1f}/s  {_format_time(remaining)} left"
        if self.rewritten:
            click.echo(f"\r{line} \033[K", err=True, nl=False)
        elif self.shown and now - self.last_line >= self.EVERY:
            self.last_line = now
            write_stderr(line)

    def clear(self) -> None:
        """Erase the line, so that another can be written in its place."""
        if self.rewritten:
            click.echo("\r\033[K", err=True, nl=False)


def _format_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@dataclass
class FoundInputs:
    """Images found for the arguments of a command."""

    paths: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Folders that cannot be read and files that are not regular, with the reason."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of files in folders that are not images, by ending."""


def find_inputs(names: tuple[str, ...], stdin0: bool) -> FoundInputs:
    """Return the image files named by arguments; folders are searched.

    Args:
        stdin0: also read names from stdin, each ended by a NUL byte.

    Raises:
        ImageError: there are no images.
    """
    from seed_edge.runtime.batch import find_images

    if stdin0:
        with click.open_file("-", "rb") as file:
            data: bytes = file.read()
        names = (*names, *filter(None, data.decode("utf-8", "surrogateescape").split("\0")))
    inputs = FoundInputs()
    for name in names:
        path = Path(name)
        if not os.path.isdir(path):
            inputs.paths.append(path)
            continue
        before = len(inputs.paths), len(inputs.failed)
        inputs.paths += find_images(path, inputs.failed, inputs.skipped)
        if (len(inputs.paths), len(inputs.failed)) == before:
            inputs.failed.append((path, f"{path} holds no images"))
    if not inputs.paths and all(reason.endswith("holds no images") for _, reason in inputs.failed):
        raise ImageError("; ".join(reason for _, reason in inputs.failed) or "no images were given")
    return inputs
