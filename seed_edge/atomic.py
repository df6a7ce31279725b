"""Atomic writes: a file appears under its name only when it is complete, and replaces an existing one only
then.

Temporary files have random names beside the final name and are created with `O_EXCL`, so that neither another
process nor a planted link can redirect a write. The kernel applies the umask.
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
"""Suffix of temporary names, `.NAME-XXXXXXXX.partial`; the leading dot hides them."""
MAX_STEM = 40
"""Maximum bytes of the final name in a temporary name; file names have at most 255 bytes."""
TEMPORARY = re.compile(r"\..*-[0-9a-f]{16}\.partial", re.DOTALL)
OPEN_FLAGS = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def temporary_name(path: Path) -> Path:
    """A random hidden name beside `path`."""
    stem = path.name.encode("utf-8", "surrogateescape")[:MAX_STEM].decode("utf-8", "ignore")
    return path.with_name(f".{stem}-{os.urandom(8).hex()}{ENDING}")


def create_temporary(path: Path) -> Path:
    """Create an empty file with a random name beside `path`, with permissions by the umask; return its path.

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
    """Create an empty folder with a random name beside `path`, with permissions by the umask; return its
    path.
    """
    while True:
        name = temporary_name(path)
        try:
            name.mkdir()
        except FileExistsError:
            continue
        return name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which is renamed to `path` when the block ends without an error.

    An error or Ctrl-C removes the temporary file and leaves `path` unchanged. If `path` is a link, its target
    is replaced. If it is a device, pipe or socket, `path` itself is yielded.

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
    """Write a file under the first of several names that does not exist yet; return that name.

    The name is claimed by a hard link, or by exclusive creation on file systems without links, so that two
    processes never get the same name.

    Args:
        path: decides the folder; the default name.
        write: called with the path of a temporary file; writes the content there.
        names: names to try, in order; by default only `path`.

    Raises:
        FileExistsError: all names exist.
        OSError: the folder cannot be written.
    """
    with _temporary(path) as partial:
        write(partial)
        _flush(partial)
        for name in iter([path]) if names is None else names:
            if _claim(partial, name):
                return name
    raise FileExistsError(17, os.strerror(17), str(path))


def is_special(path: Path) -> bool:
    """Whether `path` is a device, pipe or socket, or a link to one; such paths are written to, never
    replaced.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def same_file(first: Path, second: Path) -> bool:
    """Whether two paths refer to the same existing file, also through links."""
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def sweep(folder: Path) -> None:
    """Delete temporary files left by killed processes. Only for a folder that the caller has locked."""
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


def _claim(partial: Path, name: Path) -> bool:
    """Give a finished file the name `name`, unless that exists; return whether it did."""
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
