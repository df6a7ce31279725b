"""Cache of the open parts of a bundle: all stay open if memory allows, otherwise the least recently used is
closed first.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection
from math import prod
from typing import Protocol, TypeVar, cast

from seed_edge.bundle import Bundle
from seed_edge.errors import MemoryShortError
from seed_edge.gguf_header import GgufHeader
from seed_edge.manifest import DATA, MemoryUse
from seed_edge.memory import available_memory, free_gpu_memory
from seed_edge.runtime.isolated_load import ensure_safe

log = logging.getLogger("seed_edge")

BASE_BYTES = 100_000_000
"""Memory of the process itself in bytes: interpreter and both native libraries."""
PLENTY_FACTOR = 8
"""If this multiple of the size of all files is free, memory is not estimated at all."""
DEFAULT_FACTORS = MemoryUse(held=2, opening=3, running=4)
"""Memory of graphs without a measurement in the manifest, in multiples of the file size: fp16 becomes fp32.
"""
PROMPT_BATCH = 512
"""Maximum number of ids that llama.cpp reads in one batch, for which it allocates buffers."""


class Part(Protocol):
    """An object that uses memory until it is closed."""

    def close(self) -> None:
        """Free the memory."""


P = TypeVar("P", bound=Part)


class PartCache:
    """The open parts of a bundle, by file name; a part is opened when it is first used."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        limit: int | None = None,
        one_at_a_time: bool = False,
        on_gpu: Collection[str] = (),
        trusted: bool = False,
    ) -> None:
        """
        Args:
            limit: upper limit of this process's memory in bytes; by default the memory that is free.
            one_at_a_time: keep only one part open at a time.
            on_gpu: parts in GPU memory, which `limit` does not count.
            trusted: open parts without checks; for the child process that tests them (`isolated_load`).
        """
        self._bundle, self.limit, self.one_at_a_time, self._on_gpu = (
            bundle,
            limit,
            one_at_a_time,
            frozenset(on_gpu),
        )
        self._trusted = trusted
        self._open: OrderedDict[str, Part] = OrderedDict()
        self._uses: dict[str, MemoryUse] = {}
        self.limited = limit is not None or one_at_a_time or not self._plenty()
        """Whether memory is estimated, so that a part may be closed when another is used."""

    def get(self, name: str, make: Callable[[], P], running: int | None = None) -> P:
        """The part with a file name, opened by `make` if necessary. Other parts may be closed to free memory.

        Args:
            running: peak memory of the part in bytes while it runs; by default the manifest's value.

        Raises:
            MemoryShortError: the part does not fit the limit.
        """
        if self.limited and not self.evict_until_fits(name, running):
            self._report_shortage(name, running)
        if name not in self._open:
            if not self._trusted:
                ensure_safe(self._bundle, name)
            log.debug("opening %s", name)
            self._open[name] = make()
        self._open.move_to_end(name)
        return cast(P, self._open[name])

    def is_open(self, name: str) -> bool:
        """Whether a part is open."""
        return name in self._open

    def evict_until_fits(self, name: str, running: int | None = None) -> bool:
        """Close other parts, the least recently used first, until this one fits; return whether it does."""
        others = [other for other in self._open if other != name]
        while others and (self.one_at_a_time or not self._fits(name, running)):
            oldest = others.pop(0)
            log.debug("closing %s to make room for %s", oldest, name)
            self._open.pop(oldest).close()
        return self._fits(name, running)

    def has_free_memory(self, name: str, more: int) -> bool:
        """Whether a part could use `more` bytes in addition to what it needs."""
        room = self._room(name) if self.limited else None
        return room is None or self.memory_use(name).running + more <= room

    def batch_size(self, name: str, maximum: int) -> int:
        """Batch size of a part, at most `maximum`, that fits the memory."""
        if not self.limited or maximum == 1:
            return maximum
        if self.one_at_a_time:
            return 1
        use, room = self.memory_use(name), self._room(name)
        per_item = max(1, use.running - use.held)
        return maximum if room is None else max(1, min(maximum, (room - use.held) // per_item))

    def close(self) -> None:
        """Close all parts, the most recently used first."""
        while self._open:
            self._open.popitem()[1].close()

    def memory_use(self, name: str) -> MemoryUse:
        """Memory of a part: the manifest's values, or an estimate."""
        if name not in self._uses:
            self._uses[name] = self._estimate(name)
        return self._uses[name]

    def plan(self) -> list[str]:
        """Lines of text: the free memory, the memory of each part, and whether all parts stay open."""
        names = {name for name in self._bundle.manifest.files if name.endswith((".onnx", ".gguf"))}
        lines = self._plan("memory", names - self._on_gpu, BASE_BYTES, available_memory(), self.limit)
        return lines + self._plan("graphics card", names & self._on_gpu, 0, free_gpu_memory(), None)

    def _plan(
        self, place: str, names: Collection[str], base: int, free: int | None, limit: int | None
    ) -> list[str]:
        """The lines for one kind of memory, of which the process itself uses `base` bytes."""
        if not names:
            return []
        held = {name: self.memory_use(name).held for name in sorted(names)}
        peak = {name: max(self.memory_use(name).opening, self.memory_use(name).running) for name in held}
        idle = held if limit is None else {name: self.memory_use(name).running for name in held}
        total = base + sum(idle.values())
        total_peak = total + max(peak[name] - idle[name] for name in held)
        allowed = free if limit is None else limit
        policy = "all stay open"
        if self.one_at_a_time:
            policy = "one is open at a time"
        elif allowed is not None and total_peak > allowed:
            policy = "parts are closed when others need the memory"
        limit_text = "" if limit is None else f", {_size(limit)} allowed"
        return [
            f"{place}: {'unknown' if free is None else _size(free)} free{limit_text}",
            *(f"  {name}: {_size(held[name])}, at most {_size(peak[name])}" for name in held),
            f"  together: {_size(total)}, at most {_size(total_peak)}; {policy}",
        ]

    def _report_shortage(self, name: str, running: int | None) -> None:
        needed = max(self.memory_use(name).opening, running or self.memory_use(name).running)
        if self.limit is not None and name not in self._on_gpu:
            raise MemoryShortError(
                f"{self._bundle.path / name} needs {_size(needed + BASE_BYTES)} including the program, but "
                f"{_size(self.limit)} are allowed; raise --memory-limit, or export with smaller weights "
                "(--weight-type Q4_K_M, --image-weights int8)"
            )
        if name not in self._open and not self.one_at_a_time:
            log.warning(
                "memory is short: %s needs %s, %s are free", name, _size(needed), _size(self._free(name) or 0)
            )

    def _fits(self, name: str, running: int | None) -> bool:
        use, room = self.memory_use(name), self._room(name)
        needed = use.running if running is None else running
        return room is None or max(needed, 0 if name in self._open else use.opening) <= room

    def _room(self, name: str) -> int | None:
        """Memory in bytes that a part may use while the other open parts stay open; None if unknown."""
        if self.limit is not None and name not in self._on_gpu:
            others = set(self._open) - self._on_gpu - {name}
            # a graph keeps its memory of one run for the next
            return self.limit - BASE_BYTES - sum(self.memory_use(other).running for other in others)
        free = self._free(name)
        return None if free is None else free + (self.memory_use(name).held if name in self._open else 0)

    def _free(self, name: str) -> int | None:
        return free_gpu_memory() if name in self._on_gpu else available_memory()

    def _plenty(self) -> bool:
        """Whether so much memory is free that no estimate is needed."""
        size, free = sum(entry.size for entry in self._bundle.manifest.files.values()), available_memory()
        return not self._on_gpu and (free is None or free >= PLENTY_FACTOR * size)

    def _estimate(self, name: str) -> MemoryUse:
        manifest = self._bundle.manifest
        if name in manifest.memory:
            return manifest.memory[name]
        if manifest.language is not None and name == manifest.language.file:
            return language_model_memory(
                GgufHeader.read(self._bundle.path / name), manifest.language.context_length
            )
        size = sum(manifest.files[file].size for file in (name, name + DATA) if file in manifest.files)
        factors = DEFAULT_FACTORS
        return MemoryUse(size * factors.held, size * factors.opening, size * factors.running)


def language_model_memory(header: GgufHeader, context_length: int) -> MemoryUse:
    """Memory of llama.cpp with a model: mapped weights, buffers, and the KV cache."""
    weights = sum(tensor.size for tensor in header.tensors.values())
    vocab = next(
        (
            t.shape[1]
            for name, t in header.tensors.items()
            if name == "token_embd.weight" and len(t.shape) > 1
        ),
        0,
    )
    widest = max((max(t.shape) for name, t in header.tensors.items() if "ffn" in name), default=0)
    buffers = 4 * min(PROMPT_BATCH, context_length) * (vocab + 4 * widest)
    kv_bytes = header.kv_cache_bytes_per_token()
    held = weights + kv_bytes * min(PROMPT_BATCH, context_length) + buffers
    return MemoryUse(held, held, weights + kv_bytes * context_length + buffers)


def gpu_layers_that_fit(header: GgufHeader, context_length: int, free: int) -> int:
    """Number of layers of a language model, counted from the output layer, that fit `free` bytes of GPU
    memory.
    """
    blocks = header.number("block_count")
    kv_cache = header.kv_cache_bytes_per_token() * context_length // max(blocks, 1)
    sizes = [0] * blocks
    output = 0
    for name, tensor in header.tensors.items():
        number = name.split(".")[1] if name.startswith("blk.") else ""
        if number.isdecimal() and int(number) < blocks:
            sizes[int(number)] += tensor.size
        elif name in ("output.weight", "output_norm.weight"):
            output += tensor.size
    widest = max((prod(t.shape[1:]) for t in header.tensors.values()), default=0)
    buffers = 4 * min(PROMPT_BATCH, context_length) * widest
    left, layers = free - buffers - output, 0
    if left < 0:
        return 0
    for size in reversed(sizes):
        left -= size + kv_cache
        if left < 0:
            break
        layers += 1
    return layers + 1


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
