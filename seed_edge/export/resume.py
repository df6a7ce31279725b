"""An export in stages: after an interruption, the same command resumes at the stage that was interrupted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import seed_edge
from seed_edge.atomic import OPEN_FLAGS, TEMPORARY, replacing, sweep
from seed_edge.bundle import publish, refuse_existing
from seed_edge.errors import BundleError
from seed_edge.file_lock import lock_file
from seed_edge.inputs import read_json

RECORD = ".stages.json"
LOCK = ".lock"
RECORD_LIMIT = 16 << 20
"""Maximum size of the record of stages, in bytes."""


class Stages:
    """Finished stages of the export in one folder, with what each returned."""

    def __init__(self, folder: Path, key: str, report: Callable[[str], None]) -> None:
        """Read what an earlier run left; all of it is dropped if `key` differs.

        Args:
            folder: locked by the caller.

        Raises:
            BundleError: the folder holds anything, and is not one that an export left.
        """
        self.folder, self._report = folder, report
        self._record: dict[str, Any] = {"key": key, "done": {}}
        record = _record_in(folder)
        sweep(folder)
        if record is not None and record["key"] == key:
            self._record = record
            for entry in folder.iterdir():
                if (
                    entry.is_dir() and not entry.is_symlink()
                ):  # scratch of a stage that was killed; a bundle has no folders
                    remove(entry)
            return
        if record is not None:
            if record["done"]:
                report("other inputs or options than last time: starting anew")
            for name in os.listdir(folder):
                if name != LOCK:
                    remove(folder / name)
        self._save()

    @property
    def size(self) -> int:
        """Bytes that finished stages have written."""
        return sum(entry.stat().st_size for entry in self.folder.iterdir() if entry.is_file())

    @property
    def any_done(self) -> bool:
        """Whether an interrupted run would save anything."""
        return bool(self._record["done"])

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """The JSON value that `work` returns, or the value of an earlier run that finished the stage."""
        if name in self._record["done"]:
            self._report(f"{name}: done before")
        else:
            self._record["done"][name] = work()
            self._save()
        return self._record["done"][name]

    def _save(self) -> None:
        with replacing(self.folder / RECORD) as partial:
            partial.write_text(json.dumps(self._record), "utf-8")


def _record_in(folder: Path) -> dict[str, Any] | None:
    """What an earlier export into this folder wrote down; None for an empty folder.

    Raises:
        BundleError: the folder holds anything, and is not one that an export left.
    """
    path = folder / RECORD
    others = [
        name for name in os.listdir(folder) if name not in (LOCK, RECORD) and not TEMPORARY.fullmatch(name)
    ]
    if not path.exists() and not path.is_symlink() and not others:
        return None
    refusal = f"{folder} was not left by an export, and is in its way; remove it, or choose another --output"
    if path.is_symlink() or not path.is_file():
        raise BundleError(refusal)
    record = read_json(path, RECORD_LIMIT, BundleError)
    if not isinstance(record, dict) or record.keys() != {"key", "done"}:
        raise BundleError(refusal)
    if not isinstance(record["key"], str) or not isinstance(record["done"], dict):
        raise BundleError(refusal)
    return record


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it; what links point to stays."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def fingerprint(options: Any, *paths: Path | None) -> str:
    """A text that changes when the options or any file at or below the paths does."""
    found = []
    for path in paths:
        files = (
            []
            if path is None
            else sorted(p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())
        )
        found += [
            (str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns)
            for f in files
            if "cache" not in f.parts
        ]
    plain = {k: str(v) for k, v in dataclasses.asdict(options).items() if k != "replace"}
    return hashlib.sha256(json.dumps([seed_edge.__version__, plain, found]).encode()).hexdigest()


@contextmanager
def resumable(out: Path, replace: bool, key: str, report: Callable[[str], None]) -> Iterator[Stages]:
    """Stages in a hidden folder beside `out`, which takes the name `out` when the block ends without an
    error.

    Otherwise the folder stays if a stage was finished, and the next run with the same `key` goes on there.

    Raises:
        BundleError: `out` exists and may not be replaced, its parent cannot be written, or another export
        runs there.
    """
    refuse_existing(out, replace)
    folder = out.parent / f".{out.name}.export"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise BundleError(
            f"{folder} is a link or no folder, and is in the way; remove it, or choose another --output"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(
            f"{out.parent} cannot be written ({error.strerror}); choose another --output"
        ) from error
    with _exclusive(folder):
        stages = Stages(folder, key, report)
        try:
            yield stages
            refuse_existing(out, replace)
            (folder / RECORD).unlink()
            (folder / LOCK).unlink()
            publish(folder, out, replace)
        except BaseException:
            if stages.any_done:
                report(f"finished stages are kept in {folder}; the same command goes on there")
            else:
                remove(folder)
            raise


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Within the context no other process can export into `folder`; the lock also ends when the process ends.

    Raises:
        BundleError: another export into it is running, or the lock file is not a plain file.
    """
    path = folder / LOCK
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise BundleError(
            f"{path} is a link or no plain file, and is in the way; remove it, or choose another --output"
        )
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | OPEN_FLAGS
    with os.fdopen(os.open(path, flags, 0o666), "r+b") as file:
        try:
            lock_file(file.fileno())
        except OSError:
            raise BundleError(
                f"another export into {folder} is running; wait for it, or choose another --output"
            ) from None
        yield
