"""Checks before an output is written: it must not be an input, or a file that seed-edge did not write."""

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
"""Patterns of files that identify a run of an earlier version, which has no marker file."""
MARK = ".seed-edge-{}"
"""Name of the empty marker file of a folder that seed-edge writes; the name contains the kind of folder."""


def is_stdout(path: Path) -> bool:
    """Whether a path is standard output: `-`, or a path of the same file, such as `/dev/stdout`."""
    if path == STDOUT:
        return True
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except (OSError, ValueError):
        return False


def regular_stdin() -> list[Path]:
    """Return the path of standard input if it is a regular file and the system has a path for it."""
    path = Path("/dev/stdin")
    return [path] if path.is_file() else []


def check_not_input(
    out: Path, inputs: Iterable[Path], option: str, error: type[SeedEdgeError] = SeedEdgeError
) -> None:
    """Check that an output is not one of the inputs; links are followed.

    Args:
        option: option of the output, for the message.
        error: class of the error.

    Raises:
        SeedEdgeError: the output is an input.
    """
    for path in inputs:
        if same_file(out, path):
            subject = str(out) if out == path else f"{out} is {path}, which"
            raise error(
                f"{subject} is an input of this command and is never replaced; choose another {option}"
            )


def check_not_around(
    out: Path, inputs: Iterable[Path], option: str, error: type[SeedEdgeError] = SeedEdgeError
) -> None:
    """Check that an output folder, which a command replaces, neither is nor contains an input.

    Raises:
        SeedEdgeError: it does.
    """
    for path in inputs:
        check_not_input(out, [path], option, error)
        if any(same_file(out, parent) for parent in Path(os.path.realpath(path)).parents):
            raise error(f"{path} lies in {out} and is an input of this command; choose another {option}")


def check_not_inside(
    out: Path, folder: Path, option: str, error: type[SeedEdgeError] = SeedEdgeError
) -> None:
    """Check that an output does not lie in the folder of a bundle, where unlisted files are errors.

    Raises:
        SeedEdgeError: it does.
    """
    parent = Path(os.path.realpath(out)).parent
    if any(same_file(ancestor, folder) for ancestor in (parent, *parent.parents)):
        raise error(
            f"{out} lies in the bundle {folder}, which must not contain other files; choose another {option}"
        )


def prepare_output_folder(
    out: Path, kind: str, inputs: Iterable[Path | None] = (), signs: Sequence[str] = ()
) -> None:
    """Create an output folder and mark it as written by seed-edge; later writes replace files in it.

    The folder must not exist, be empty, or have the marker file of the same kind.

    Args:
        kind: kind of folder: `run`, `model`, `codes`, `sheets`.
        inputs: files and folders that the command reads; none of them can be the output.
        signs: patterns of files that identify a folder of an earlier version, which has no marker file.

    Raises:
        DataError: `out` is an input, is not a folder, contains files that seed-edge did not write, or cannot
            be written.
    """
    check_not_input(out, [path for path in inputs if path is not None], "--output", DataError)
    mark = out / MARK.format(kind)
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = sorted(
            name for name in os.listdir(out) if not TEMPORARY.fullmatch(name) and name != mark.name
        )
        if _is_regular(mark):  # after listing: another process of the run marks the folder before it writes
            return
        if others and not any(next(out.glob(sign), None) for sign in signs):
            raise DataError(
                f"{out} contains {others[0]}, and is not a folder of {kind} that seed-edge wrote; choose a "
                "new folder"
            )
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | OPEN_FLAGS, 0o666))
    except FileExistsError:
        raise DataError(f"{out} is not a folder; choose another --output") from None
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); choose another --output") from error


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def check_new_file(out: Path, inputs: Iterable[Path] = (), option: str = "--output") -> None:
    """Check that an output does not exist, or is a device or a pipe.

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
        raise DataError(f"{out} already exists; choose another {option}")


def write_error_message(error: OSError, path: Path) -> str:
    """Return the message of a failed write: the path and the reason of the system."""
    if error.errno == errno.ENAMETOOLONG:
        return f"{printable(path.name[:60])}...: the name is too long for a file system"
    return f"{path} cannot be written ({error.strerror or error})"
