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
from seed_edge.bundle import check_replaceable_bundle, publish
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
        """Read what an earlier run left; its files are deleted if `key` differs.

        Args:
            folder: locked by the caller.

        Raises:
            BundleError: the folder is not empty and was not left by an export.
        """
        self.folder, self._report = folder, report
        self._record: dict[str, Any] = {"key": key, "done": {}}
        record = _record_in(folder)
        sweep(folder)
        if record is not None and record["key"] == key:
            self._record = record
            for entry in folder.iterdir():
                # temporary folder of a stage that was killed; a bundle has no folders
                if entry.is_dir() and not entry.is_symlink():
                    remove(entry)
            return
        if record is not None:
            if record["done"]:
                report("the inputs or options have changed: starting from the beginning")
            for name in os.listdir(folder):
                if name != LOCK:
                    remove(folder / name)
        self._save()

    @property
    def size(self) -> int:
        """Size of the files in the folder, in bytes."""
        return sum(entry.stat().st_size for entry in self.folder.iterdir() if entry.is_file())

    @property
    def any_done(self) -> bool:
        """Whether a stage is finished."""
        return bool(self._record["done"])

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the JSON value of `work`, or the value of an earlier run that finished the stage."""
        if name in self._record["done"]:
            self._report(f"{name}: already done")
        else:
            self._record["done"][name] = work()
            self._save()
        return self._record["done"][name]

    def _save(self) -> None:
        with replacing(self.folder / RECORD) as partial:
            partial.write_text(json.dumps(self._record), "utf-8")


def _record_in(folder: Path) -> dict[str, Any] | None:
    """Return the record of an earlier export into this folder; None for an empty folder.

    Raises:
        BundleError: the folder is not empty and was not left by an export.
    """
    path = folder / RECORD
    others = [
        name for name in os.listdir(folder) if name not in (LOCK, RECORD) and not TEMPORARY.fullmatch(name)
    ]
    if not path.exists() and not path.is_symlink() and not others:
        return None
    message = f"{folder} exists and was not left by an export; remove it, or choose another --output"
    if path.is_symlink() or not path.is_file():
        raise BundleError(message)
    record = read_json(path, RECORD_LIMIT, BundleError)
    if not isinstance(record, dict) or record.keys() != {"key", "done"}:
        raise BundleError(message)
    if not isinstance(record["key"], str) or not isinstance(record["done"], dict):
        raise BundleError(message)
    return record


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with its content; targets of links are kept."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def fingerprint(options: Any, *paths: Path | None) -> str:
    """Return a hash that changes when the options or any file at or below the paths changes."""
    signatures: list[tuple[str, int, int]] = []
    for path in paths:
        files = (
            []
            if path is None
            else sorted(p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())
        )
        signatures += [
            (str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns)
            for f in files
            if "cache" not in f.parts
        ]
    plain = {k: str(v) for k, v in dataclasses.asdict(options).items() if k != "replace"}
    return hashlib.sha256(json.dumps([seed_edge.__version__, plain, signatures]).encode()).hexdigest()


@contextmanager
def resumable(out: Path, replace: bool, key: str, report: Callable[[str], None]) -> Iterator[Stages]:
    """Yield the stages of an export into a hidden folder beside `out`, which is renamed to `out` at the end.

    After an error the folder is kept if a stage is finished, and the next run with the same `key` resumes
    there.

    Raises:
        BundleError: `out` exists and may not be replaced, its parent cannot be written, or another export
            runs there.
    """
    check_replaceable_bundle(out, replace)
    folder = out.parent / f".{out.name}.export"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise BundleError(f"{folder} exists and is not a plain folder; remove it, or choose another --output")
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
            check_replaceable_bundle(out, replace)
            (folder / RECORD).unlink()
            (folder / LOCK).unlink()
            publish(folder, out, replace)
        except BaseException:
            if stages.any_done:
                report(f"finished stages are kept in {folder}; the same command resumes the export")
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
        raise BundleError(f"{path} exists and is not a plain file; remove it, or choose another --output")
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | OPEN_FLAGS
    with os.fdopen(os.open(path, flags, 0o666), "r+b") as file:
        try:
            lock_file(file.fileno())
        except OSError:
            raise BundleError(
                f"another export into {folder} is running; wait for it, or choose another --output"
            ) from None
        yield
