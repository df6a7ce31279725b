"""Folders of the user for added bundles, configuration and caches."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from seed_edge.atomic import replacing
from seed_edge.errors import BundleError

log = logging.getLogger("seed_edge")

HOME = "SEED_EDGE_HOME"
"""Environment variable: one folder for all data, instead of the standard folders of the system."""
APP = "seed-edge"
CONFIG = "seed-edge.toml"
BUNDLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
MAX_ENTRIES = 1000
"""Maximum number of files in `CheckCache`."""
MIN_AGE = 2.0
"""Minimum age in seconds of a file that is cached; a younger one could change within the resolution of its
modification time.
"""


def folder(kind: str) -> Path:
    """Return the folder for `data`, `config` or `cache`; it may not exist."""
    home = os.environ.get(HOME)
    if home:
        return Path(home)
    import platformdirs

    return Path(getattr(platformdirs, f"user_{kind}_dir")(APP, appauthor=False))


def bundles_folder() -> Path:
    """Return the folder of added bundles; it may not exist."""
    return folder("data") / "bundles"


def bundle_folder(name: str) -> Path:
    """Return the folder of an added bundle; it may not exist.

    Raises:
        BundleError: the name is invalid.
    """
    if not BUNDLE_NAME.fullmatch(name):
        raise BundleError(
            f"{name!r} is not a valid name of a bundle; use letters, digits, dots, dashes and underscores"
        )
    return bundles_folder() / name


def bundle_names() -> list[str]:
    """Return the names of the added bundles, sorted."""
    parent = bundles_folder()
    return (
        sorted(path.name for path in parent.iterdir() if BUNDLE_NAME.fullmatch(path.name))
        if parent.is_dir()
        else []
    )


class CheckCache:
    """Cache of the files that passed a check. An entry is valid while size, times, inode and device of the
    file stay the same.
    """

    def __init__(self) -> None:
        self._path = folder("cache") / "checked.json"
        self._entries: dict[str, Any] = {}
        try:
            content = json.loads(self._path.read_text("utf-8"))
            self._entries = content if isinstance(content, dict) else {}
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.debug("%s is not used (%s)", self._path, error)
        self._changed = False

    def has(self, path: Path, check: str) -> bool:
        """Whether a file passed a check and has not changed since."""
        entry = self._entries.get(str(path.resolve()))
        return isinstance(entry, dict) and entry.get(check) == _state(path)

    def add(self, path: Path, check: str) -> None:
        """Record that a file passed a check; a file younger than `MIN_AGE` is not recorded."""
        if time.time() - path.stat().st_mtime > MIN_AGE:
            entry = self._entries.pop(str(path.resolve()), None)
            self._entries[str(path.resolve())] = (entry if isinstance(entry, dict) else {}) | {
                check: _state(path)
            }
            self._changed = True

    def save(self) -> None:
        """Write the cache to disk. If that fails, files are checked again next time."""
        if not self._changed:
            return
        recent = dict([*self._entries.items()][-MAX_ENTRIES:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as partial:
                partial.write_text(json.dumps(recent), "utf-8")
        except OSError as error:
            log.debug("%s cannot be written (%s)", self._path, error.strerror)


def _state(path: Path) -> list[int]:
    state = path.stat(follow_symlinks=False)
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev]
