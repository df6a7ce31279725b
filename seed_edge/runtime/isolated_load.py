"""Tests the parts of a bundle in a child process before this process opens them.

First a part is checked by the rules of its kind, in Python. Then a child process (`isolated_child.py`) opens
it and runs it once: if ONNX Runtime or llama.cpp crashes, hangs or uses too much memory there, this process
raises an error that names the file. A part that passed is not tested again until its file, the manifest or a
native library changes. The embedded bundle is part of the package and is trusted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Sequence

from seed_edge import __version__, native
from seed_edge.bundle import EMBEDDED, Bundle
from seed_edge.errors import BundleError
from seed_edge.manifest import DATA, IMAGE_NOISE, MANIFEST, UNET
from seed_edge.user_dirs import CheckCache

log = logging.getLogger("seed_edge")

VERSION = 1
"""Version of the rules and of the child process; after a change, all parts are tested again."""
BASE_SECONDS, BYTES_PER_SECOND = 60, 4 << 20
"""Time limit of a child: a constant, plus the time to read the files from a slow disk."""
BASE_MEMORY, MEMORY_PER_BYTE = 3 << 30, 12
"""Limit of a child's private memory: a constant, plus a multiple of the files' size."""
BATCH_SIZE = 64 << 20
"""All parts of a bundle up to this total size in bytes are tested by one child."""


def part_names(bundle: Bundle) -> list[str]:
    """Files of a bundle that are opened as parts: graphs and the language model."""
    return [name for name in bundle.manifest.files if name.endswith((".onnx", ".gguf"))]


def check_rules(bundle: Bundle, name: str) -> None:
    """Check a part by the rules of its kind.

    Raises:
        BundleError: it breaks a rule.
    """
    from seed_edge.diffusion_arrays import read_noise_arrays
    from seed_edge.gguf_rules import check_language_model
    from seed_edge.onnx_rules import check_graph

    manifest = bundle.manifest
    if manifest.language is not None and name == manifest.language.file:
        check_language_model(bundle.path / name, manifest.language.vocab)
        return
    axes: dict[str, int] = {}
    if manifest.diffusion is not None:
        axes = dict.fromkeys(("rows", "columns"), manifest.diffusion.latent_size)
        if name == UNET:
            read_noise_arrays(
                bundle.path / IMAGE_NOISE, manifest.image_embed_dim, manifest.diffusion.steps_offset
            )
    check_graph(bundle.path / name, manifest.graphs()[name], axes)


def ensure_safe(bundle: Bundle, name: str) -> None:
    """Check a part, and test it in a child process, unless it passed before and did not change.

    If the bundle is small, the same child also tests the other parts. The embedded bundle is trusted.

    Raises:
        BundleError: the part breaks a rule, or the child fails, crashes, hangs or runs out of memory.
    """
    if bundle.path == EMBEDDED:
        return
    checked, proof = CheckCache(), _proof(bundle)
    if checked.has(bundle.path / name, proof):
        return
    check_rules(bundle, name)
    optional: list[str] = []
    if _is_small(bundle):
        others = [other for other in part_names(bundle) if other != name]
        untested = [other for other in others if not checked.has(bundle.path / other, proof)]
        optional = [other for other in untested if _passes_rules(bundle, other)]
    _test_in_child(bundle, [name], optional, checked, proof)
    checked.save()


def check_all_parts(bundle: Bundle) -> None:
    """Check and test every part in a child process, even if it passed before; also of the embedded bundle.

    Raises:
        BundleError: see `ensure_safe`.
    """
    names, checked, proof = part_names(bundle), CheckCache(), _proof(bundle)
    for name in names:
        check_rules(bundle, name)
    for group in [names] if _is_small(bundle) else [[name] for name in names]:
        _test_in_child(bundle, group, [], checked, proof)
    checked.save()


def _is_small(bundle: Bundle) -> bool:
    return sum(_size(bundle, name) for name in part_names(bundle)) <= BATCH_SIZE


def _passes_rules(bundle: Bundle, name: str) -> bool:
    """Whether a part that is not needed yet passes the rules."""
    try:
        check_rules(bundle, name)
    except BundleError as error:
        log.debug("%s", error)
        return False
    return True


def _proof(bundle: Bundle) -> str:
    """Key under which passed parts are stored: a hash of the manifest and of all versions."""
    versions = [str(VERSION), __version__, *map(native.installed_version, native.LIBRARIES)]
    return hashlib.sha256("\n".join(versions).encode() + (bundle.path / MANIFEST).read_bytes()).hexdigest()[
        :32
    ]


def _size(bundle: Bundle, name: str) -> int:
    """Size in bytes of a part, including its external weights."""
    files = bundle.manifest.files
    return sum(files[file].size for file in (name, name + DATA) if file in files)


def _test_in_child(
    bundle: Bundle, required: Sequence[str], optional: Sequence[str], checked: CheckCache, proof: str
) -> None:
    """Test parts in one child process, store those that pass, raise the first error of `required`."""
    names = [*required, *optional]
    size = sum(_size(bundle, name) for name in names)
    memory, seconds = BASE_MEMORY + MEMORY_PER_BYTE * size, BASE_SECONDS + size // BYTES_PER_SECOND
    module = [sys.executable, "-m", "seed_edge.runtime.isolated_child"]
    command = [*module, str(memory), str(seconds), str(bundle.path.resolve()), *names]
    log.info("testing new parts in a separate process: %s", ", ".join(names))
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
        output, died = done.stdout, _death(done.returncode)
        log.debug("child: %s", done.stderr.decode("utf-8", "replace")[-2000:])
    except subprocess.TimeoutExpired as error:
        output, died = error.stdout or b"", f"is not done after {seconds} seconds"
    except OSError as error:
        raise BundleError(
            f"{bundle.path}: no process can be started to test it ({error.strerror}: {command[0]})"
        ) from error
    results = _results(output)
    for name in names:
        if results.get(name) == "":
            checked.add(bundle.path / name, proof)
    for name in required:
        if name not in results:
            reason = died or "was not tested: the process ended early"
            raise BundleError(f"{bundle.path / name} {reason}; do not use it: copy or export it again")
        if results[name]:
            raise BundleError(results[name])


def _death(code: int) -> str:
    """Why the child ended, in words; an empty string after a normal end."""
    if code == 0:
        return ""
    if code < 0:
        import signal

        return f"crashes the process that opens it ({signal.Signals(-code).name})"
    return f"cannot be opened (exit code {code})"


def _results(output: bytes) -> dict[str, str]:
    """The error of each part that was tested; an empty string if it passed."""
    results: dict[str, str] = {}
    for line in output.splitlines():
        try:
            record = json.loads(line)
            results[str(record["part"])] = str(record["error"])
        except (ValueError, TypeError, KeyError):
            continue  # a line that a native library printed
    return results
