"""Files written whole or not at all. Nothing that exists is touched before its replacement is complete.

Temporary names are random and created with `O_EXCL` beside the final name, so that neither a second process
nor a planted link can be written through. The kernel applies the umask.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ENDING = ".partial"
"""End of temporary names: `.NAME-XXXXXXXX.partial`, hidden."""
MAX_STEM = 40
"""Characters of the final name in a temporary one; names have 255 bytes at most."""
TEMPORARY = re.compile(r"\..*-[0-9a-f]{16}\.partial", re.DOTALL)
OPEN_FLAGS = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def temporary_name(path: Path) -> Path:
    """A random hidden name beside `path`."""
    stem = path.name.encode("utf-8", "surrogateescape")[:MAX_STEM].decode("utf-8", "ignore")
    return path.with_name(f".{stem}-{os.urandom(8).hex()}{ENDING}")


def create_temporary(path: Path) -> Path:
    """An empty file under a random name beside `path`, with the permissions that the umask leaves.

    Raises:
        OSError: the folder cannot be written.
    """
    while True:
        name = temporary_name(path)
        try:
            os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o666))
        except FileExistsError:
            continue
        return name


def create_temporary_folder(path: Path) -> Path:
    """An empty folder under a random name beside `path`, with the permissions that the umask leaves."""
    while True:
        name = temporary_name(path)
        try:
            name.mkdir()
        except FileExistsError:
            continue
        return name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which takes the name `path` when the block ends without an error.

    An error or Ctrl-C removes the temporary file and leaves `path` as it was. A link stays: what it points to
    is replaced. A device, pipe or socket is yielded itself, to be written to.

    Raises:
        OSError: the folder cannot be written.
    """
    if is_special(path):
        yield path
        return
    target = Path(os.path.realpath(path))
    with _temporary(target) as partial:
        yield partial
        _flush(partial)
        os.replace(partial, target)


def write_new(path: Path, write: Callable[[Path], None], names: Iterator[Path] | None = None) -> Path:
    """Write a file under the first of several names that no file has; return that name.

    The name is taken by a hard link, or where the file system has none by an exclusive creation, so that of
    two processes each gets a name of its own.

    Args:
        path: the name that is wanted; decides the folder.
        write: writes the content to the temporary file that it is given.
        names: names to try, the first of which is taken that is free; by default only `path`.

    Raises:
        FileExistsError: all names are taken.
        OSError: the folder cannot be written.
    """
    with _temporary(path) as partial:
        write(partial)
        _flush(partial)
        for name in iter([path]) if names is None else names:
            if _take(partial, name):
                return name
    raise FileExistsError(17, os.strerror(17), str(path))


def is_special(path: Path) -> bool:
    """Whether `path` is a device, pipe or socket, or a link to one: written to, and never replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths name the same existing file, links included."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def sweep(folder: Path) -> None:
    """Delete temporary files of killed processes. Only for a folder that the caller has locked."""
    for entry in os.scandir(folder):
        if TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    partial = create_temporary(path)
    try:
        yield partial
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _take(partial: Path, name: Path) -> bool:
    """Give a finished file another name, unless that is taken."""
    try:
        os.link(partial, name)
    except FileExistsError:
        return False
    except OSError:  # no hard links on this file system
        try:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o666))
        except FileExistsError:
            return False
        os.replace(partial, name)
    return True


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
