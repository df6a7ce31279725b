"""Checks before an output is written: it must not be an input, nor a file that seed-edge did not write."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from seed_edge.atomic import OPEN_FLAGS, TEMPORARY, same_file
from seed_edge.display import printable
from seed_edge.errors import DataError, SeedEdgeError

STDOUT = Path("-")
"""Name of standard output on the command line."""
RUN_FILES = ("state.pt", "*/state.pt", "cache/samples.jsonl")
"""Files by which a run of an earlier version is known, which had no mark."""
MARK = ".seed-edge-{}"
"""Name of the empty file that marks a folder of seed-edge; it contains the purpose of the folder."""


def is_stdout(path: Path) -> bool:
    """Whether a path is standard output: `-`, or a name such as `/dev/stdout` of what it is connected to."""
    if path == STDOUT:
        return True
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except (OSError, ValueError):
        return False


def regular_stdin() -> list[Path]:
    """The file that standard input is read from, where it is a regular one and the system names it."""
    name = Path("/dev/stdin")
    return [name] if name.is_file() else []


def check_not_input(
    out: Path, inputs: Iterable[Path], option: str, error: type[SeedEdgeError] = SeedEdgeError
) -> None:
    """Refuse an output that is one of the inputs, links included.

    Args:
        option: that names the output, for the message.

    Raises:
        SeedEdgeError: it is, whatever else was said.
    """
    for given in inputs:
        if same_file(out, given):
            names = str(out) if out == given else f"{out} is {given}, which"
            raise error(f"{names} is read by this command and is never written to; choose another {option}")


def check_not_around(
    out: Path, inputs: Iterable[Path], option: str, error: type[SeedEdgeError] = SeedEdgeError
) -> None:
    """Refuse an output folder that is an input or in which one lies, for commands that replace the folder.

    Raises:
        SeedEdgeError: it is.
    """
    for given in inputs:
        check_not_input(out, [given], option, error)
        if any(same_file(out, parent) for parent in Path(os.path.realpath(given)).parents):
            raise error(f"{given} lies in {out} and is read by this command; choose another {option}")


def check_not_inside(
    out: Path, folder: Path, option: str, error: type[SeedEdgeError] = SeedEdgeError
) -> None:
    """Refuse an output in a folder whose files are all accounted for, such as a bundle's.

    Raises:
        SeedEdgeError: it lies there.
    """
    place = Path(os.path.realpath(out)).parent
    if any(same_file(parent, folder) for parent in (place, *place.parents)):
        raise error(f"{out} lies in the bundle {folder}, which holds nothing else; choose another {option}")


def prepare_output_folder(
    out: Path, kind: str, inputs: Iterable[Path | None] = (), signs: Sequence[str] = ()
) -> None:
    """Make `out` a folder of ours, unless it is one already; files in it are replaced by what is written
    later.

    Taken are: a folder that is not there yet, an empty one, and one that was claimed for the same kind
    before.

    Args:
        kind: what the folder is for: `run`, `model`, `codes`, `sheets`.
        inputs: what the command reads; none of it can be the output.
        signs: patterns of files by which a folder is known that an earlier version wrote.

    Raises:
        DataError: `out` is an input, no folder, or holds what seed-edge did not write; or it cannot be
            written.
    """
    check_not_input(out, [path for path in inputs if path is not None], "--output", DataError)
    mark = out / MARK.format(kind)
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = sorted(
            name for name in os.listdir(out) if not TEMPORARY.fullmatch(name) and name != mark.name
        )
        if _is_plain(
            mark
        ):  # looked at after the list: another process of the same run marks the folder before it writes
            return
        if others and not any(next(out.glob(sign), None) for sign in signs):
            raise DataError(
                f"{out} holds {others[0]}, and is no folder of {kind} that seed-edge wrote; choose a new "
                "folder"
            )
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | OPEN_FLAGS, 0o666))
    except FileExistsError:
        raise DataError(f"{out} is no folder; choose another --output") from None
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); choose another --output") from error


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def check_new_file(out: Path, inputs: Iterable[Path] = (), option: str = "--output") -> None:
    """Refuse an existing file; devices and pipes are allowed.

    Raises:
        DataError: it exists, or is an input.
    """
    check_not_input(out, inputs, option, DataError)
    try:
        mode = out.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{out}: {error.strerror}; choose another {option}") from error
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
        raise DataError(f"{out} exists already; choose another {option}")


def write_error_message(error: OSError, path: Path) -> str:
    """Message of a failed write: the path and the reason of the system."""
    if error.errno == errno.ENAMETOOLONG:
        return f"{printable(path.name[:60])}...: the name is too long for a file system"
    return f"{path} cannot be written ({error.strerror or error})"
