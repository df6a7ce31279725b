"""Parts of a bundle are opened and run once in a child process before this process opens them.

First a part is held against the rules of its kind, which need no native code. What these cannot prove, a child process tries:
if ONNX Runtime or llama.cpp crashes, hangs or takes too much memory there, this process raises an error that names the file. A
part that passed is remembered until its file, the manifest or the native library changes. The embedded bundle is part of the
package and is not tried.

`python -m seed_edge.runtime.isolated_load FOLDER PART ...` is the child; it prints a line of JSON for each part.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seed_edge import __version__, native
from seed_edge.bundle import EMBEDDED, Bundle
from seed_edge.errors import BundleError, SeedEdgeError
from seed_edge.manifest import DATA, DECODER, ENCODER, IMAGE_NOISE, MANIFEST, UNET, VAE
from seed_edge.user_dirs import Checked

log = logging.getLogger("seed_edge")

VERSION = 1
"""Of the rules and of what the child does; a change makes every part be tried again."""
BASE_SECONDS, BYTES_PER_SECOND = 60, 4 << 20
"""Time for a child: so much, and the files' size at a slow disk's rate."""
BASE_MEMORY, MEMORY_PER_BYTE = 3 << 30, 12
"""Private memory of a child: so much, and so many times the files' size."""
TOGETHER = 64 << 20
"""Bytes of parts that one child tries, the first time one of them is needed."""
SAMPLE = "A red fox; 7 houses,\tβ 北 \N{FOX FACE}\x00\x1b</s><img_00001>\n\xff"
"""Text for a tokenizer: pieces, bytes, control characters, names of control tokens."""


def part_names(bundle: Bundle) -> list[str]:
    """Files of a bundle that are opened as parts: graphs and the language model."""
    return [name for name in bundle.manifest.files if name.endswith((".onnx", ".gguf"))]


def check_rules(bundle: Bundle, name: str) -> None:
    """Hold a part against the rules of its kind.

    Raises:
        BundleError: it breaks one.
    """
    from seed_edge.diffusion_arrays import noise_arrays
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
            noise_arrays(bundle.path / IMAGE_NOISE, manifest.image_embed_dim, manifest.diffusion.steps_offset)
    check_graph(bundle.path / name, manifest.graphs()[name], axes)


def ensure_safe(bundle: Bundle, name: str) -> None:
    """Check a part, and try it in a child process, unless it passed before and did not change.

    Where the bundle is small, its other parts are tried along. The embedded bundle is trusted.

    Raises:
        BundleError: the part breaks a rule, or the child fails, crashes, hangs or runs out of memory.
    """
    if bundle.path == EMBEDDED:
        return
    checked, proof = Checked(), _proof(bundle)
    if checked.has(bundle.path / name, proof):
        return
    check_rules(bundle, name)
    along: list[str] = []
    if _small(bundle):
        others = (each for each in part_names(bundle) if each != name and not checked.has(bundle.path / each, proof))
        along = [each for each in others if _fits_rules(bundle, each)]
    _try_in_child(bundle, [name], along, checked, proof)
    checked.save()


def try_all(bundle: Bundle) -> None:
    """Check every part and try it in a child process, whatever is remembered, the embedded bundle too.

    Raises:
        BundleError: see `ensure_safe`.
    """
    names, checked, proof = part_names(bundle), Checked(), _proof(bundle)
    for name in names:
        check_rules(bundle, name)
    for group in [names] if _small(bundle) else [[name] for name in names]:
        _try_in_child(bundle, group, [], checked, proof)
    checked.save()


def _small(bundle: Bundle) -> bool:
    return sum(_size(bundle, name) for name in part_names(bundle)) <= TOGETHER


def _fits_rules(bundle: Bundle, name: str) -> bool:
    """Whether another part than the one that is needed may be tried along."""
    try:
        check_rules(bundle, name)
    except BundleError as error:
        log.debug("%s", error)
        return False
    return True


def _proof(bundle: Bundle) -> str:
    """Name of what is remembered: changes with the manifest, the native libraries and this program."""
    versions = [str(VERSION), __version__, *map(native.installed_version, native.LIBRARIES)]
    return hashlib.sha256("\n".join(versions).encode() + (bundle.path / MANIFEST).read_bytes()).hexdigest()[:32]


def _size(bundle: Bundle, name: str) -> int:
    files = bundle.manifest.files
    return sum(files[each].size for each in (name, name + DATA) if each in files)


def _try_in_child(bundle: Bundle, needed: Sequence[str], along: Sequence[str], checked: Checked, proof: str) -> None:
    """Try parts in one child; those that pass are noted, the first failure of those needed is raised."""
    names = [*needed, *along]
    size = sum(_size(bundle, name) for name in names)
    memory, seconds = BASE_MEMORY + MEMORY_PER_BYTE * size, BASE_SECONDS + size // BYTES_PER_SECOND
    module = [sys.executable, "-m", "seed_edge.runtime.isolated_load"]
    command = [*module, str(memory), str(seconds), str(bundle.path.resolve()), *names]
    log.info("trying %s in a process of its own, as it is new here", ", ".join(names))
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
        output, died = done.stdout, _death(done.returncode)
        log.debug("child: %s", done.stderr.decode("utf-8", "replace")[-2000:])
    except subprocess.TimeoutExpired as error:
        output, died = error.stdout or b"", f"is not done after {seconds} seconds"
    except OSError as error:
        raise BundleError(f"{bundle.path}: no process can be started to try it in ({error.strerror}: {command[0]})") from error
    results = _results(output)
    for name in names:
        if results.get(name) == "":
            checked.add(bundle.path / name, proof)
    for name in needed:
        if name not in results:
            reason = died or "is not tried: the process ends early"
            raise BundleError(f"{bundle.path / name} {reason}; do not use it: copy or export it again")
        if results[name]:
            raise BundleError(results[name])


def _death(code: int) -> str:
    """What ended a child, in words; an empty text where it ended well."""
    if code == 0:
        return ""
    if code < 0:
        import signal

        return f"ends the process that opens it ({signal.Signals(-code).name})"
    return f"cannot be opened (exit code {code})"


def _results(output: bytes) -> dict[str, str]:
    """Error of each part that was tried, empty where it passed."""
    found: dict[str, str] = {}
    for line in output.splitlines():
        try:
            record = json.loads(line)
            found[str(record["part"])] = str(record["error"])
        except (ValueError, TypeError, KeyError):
            continue  # a line that a native library printed
    return found


def limit_resources(memory: int, seconds: int) -> None:
    """Bound private memory and processor time of this process, and leave no core file; where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, limit in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CPU, seconds * (os.cpu_count() or 1))):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def run_part(bundle: Bundle, name: str) -> None:
    """Open a part and run it once.

    Raises:
        SeedEdgeError: it cannot be opened or run, or gives what it must not.
    """
    from seed_edge.runtime.onnx_session import choose_device
    from seed_edge.runtime.part_cache import Residents

    device, residents = choose_device("cpu"), Residents(bundle, trusted=True)
    try:
        if name.endswith(".gguf"):
            _run_language_model(bundle)
        elif name in (ENCODER, DECODER):
            _run_image_tokenizer(bundle, name, device, residents)
        else:
            _run_diffusion(bundle, name, device, residents)
    finally:
        residents.close()


def _run_image_tokenizer(bundle: Bundle, name: str, device: Any, residents: Any) -> None:
    from seed_edge.runtime.image_tokenizer import ImageTokenizer
    from seed_edge.runtime.selftest import pattern

    images, manifest = ImageTokenizer(bundle, device, residents), bundle.manifest
    if name == ENCODER:
        images.encode_values(manifest.preprocessing.normalise(pattern(manifest.preprocessing.image_size)[None]))
        return
    largest = manifest.codes.codebook_size - 1
    for code in (0, largest):
        decoded = images.decoded(np.full((1, manifest.codes.codes_per_image), code, np.int64))
        if not np.isfinite(decoded).all():
            raise BundleError(f"{bundle.decoder} gives values that are not numbers for code {code}; export again")


def _run_diffusion(bundle: Bundle, name: str, device: Any, residents: Any) -> None:
    from seed_edge.runtime.unclip import DiffusionOptions, Unclip

    unclip = Unclip(bundle, device, residents)
    latents, noise = unclip.noise(0, 1)
    if name == UNET:
        unclip.walk(noise, latents, noise, DiffusionOptions(steps=2, guidance=1.0, scheduler="ddim"))
    elif name == VAE:
        unclip.develop(latents, tiled=True)


def _run_language_model(bundle: Bundle) -> None:
    from seed_edge.runtime.language_model import LlamaCpp

    vocab, language = bundle.language.vocab, bundle.language
    model = LlamaCpp(bundle.language_model, language.context_length, repack=False, check_tensors=True)
    try:
        if model.vocab_size != vocab.size:
            raise BundleError(f"{bundle.language_model} has {model.vocab_size} ids, the manifest says {vocab.size}")
        ids = [vocab.bos_id, *model.tokenize(SAMPLE)][: max(1, language.context_length // 2)]
        for token in range(vocab.size):
            model.text_of([token])
        logits = [model.start(ids, room=1), model.step(vocab.first_code_id)]
        with model.fork(2, 2) as other:
            other.start(ids[:1], room=2)
            logits.append(other.branch([vocab.boi_id, vocab.eos_id], [0, 0]))
        if not all(np.isfinite(each).all() for each in logits):
            raise BundleError(f"{bundle.language_model} gives values that are not numbers; export again")
    finally:
        model.close()


def main(arguments: Sequence[str]) -> None:
    """Try parts, in order; a line of JSON for each."""
    memory, seconds, folder, *names = arguments
    limit_resources(int(memory), int(seconds))
    bundle = Bundle.read(Path(folder))
    for name in names:
        error = ""
        try:
            run_part(bundle, name)
        except SeedEdgeError as problem:
            error = str(problem)
        except MemoryError:
            error = f"{bundle.path / name} takes over {int(memory) / 1e9:.1f} GB; do not use it"
        print(json.dumps({"part": name, "error": error}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
