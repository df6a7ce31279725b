"""Folders of the user: added bundles, configuration, caches."""

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
"""Environment variable: one folder for all of it, instead of those that the system has for each."""
APP = "seed-edge"
CONFIG = "seed-edge.toml"
BUNDLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
MAX_REMEMBERED = 1000
SETTLED = 2.0
"""Seconds after which a file that changes again surely has another time of change."""


def folder(kind: str) -> Path:
    """The folder for `data`, `config` or `cache`; it need not exist."""
    chosen = os.environ.get(HOME)
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(getattr(platformdirs, f"user_{kind}_dir")(APP, appauthor=False))


def bundles_folder() -> Path:
    """Where `bundles add` puts bundles."""
    return folder("data") / "bundles"


def bundle_folder(name: str) -> Path:
    """Folder of a bundle by its name.

    Raises:
        BundleError: this cannot be a name.
    """
    if not BUNDLE_NAME.fullmatch(name):
        raise BundleError(
            f"{name!r} is no name for a bundle; letters, digits, dots, dashes and underscores make one"
        )
    return bundles_folder() / name


def bundle_names() -> list[str]:
    """Names of the bundles that were added."""
    place = bundles_folder()
    return (
        sorted(path.name for path in place.iterdir() if BUNDLE_NAME.fullmatch(path.name))
        if place.is_dir()
        else []
    )


class Checked:
    """Remembers which files passed a check, as long as their size, time of change and place on the disk stay
    the same.
    """

    def __init__(self) -> None:
        self._path = folder("cache") / "checked.json"
        self._known: dict[str, Any] = {}
        try:
            found = json.loads(self._path.read_text("utf-8"))
            self._known = found if isinstance(found, dict) else {}
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.debug("%s is not used (%s)", self._path, error)
        self._changed = False

    def has(self, path: Path, check: str) -> bool:
        """Whether a file passed this check."""
        said = self._known.get(str(path.resolve()))
        return isinstance(said, dict) and said.get(check) == _state(path)

    def add(self, path: Path, check: str) -> None:
        """A file passed this check now; one that was changed only just now is not remembered."""
        if time.time() - path.stat().st_mtime > SETTLED:
            said = self._known.pop(str(path.resolve()), None)
            self._known[str(path.resolve())] = (said if isinstance(said, dict) else {}) | {
                check: _state(path)
            }
            self._changed = True

    def save(self) -> None:
        """Save the cache. If that fails, files are checked again next time."""
        if not self._changed:
            return
        kept = dict([*self._known.items()][-MAX_REMEMBERED:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as partial:
                partial.write_text(json.dumps(kept), "utf-8")
        except OSError as error:
            log.debug("%s cannot be written (%s)", self._path, error.strerror)


def _state(path: Path) -> list[int]:
    found = path.stat(follow_symlinks=False)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
