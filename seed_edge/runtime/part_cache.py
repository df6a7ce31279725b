"""Keeps the parts of a bundle open: all of them if memory allows, otherwise the least recently used part is
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

BASE = 100_000_000
"""Memory of the process itself in bytes: interpreter and both native libraries."""
PLENTY_FACTOR = 8
"""If this many times the size of all files is free, memory is not estimated at all."""
GUESS = MemoryUse(held=2, opening=3, running=4)
"""Estimate for bundles whose manifest has none, in multiples of a graph's size: fp16 weights become fp32."""
PROMPT_IDS = 512
"""Ids that llama.cpp reads in one batch, for which it allocates buffers."""


class Part(Protocol):
    """Something that holds memory until it is closed."""

    def close(self) -> None:
        """Free it."""


P = TypeVar("P", bound=Part)


class PartCache:
    """The open parts of a bundle, by file name; a part is opened when it is first used."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        limit: int | None = None,
        alone: bool = False,
        on_card: Collection[str] = (),
        trusted: bool = False,
    ) -> None:
        """
        Args:
            limit: upper limit of this process's memory in bytes; by default the memory that is free.
            alone: keep only one part open at a time.
            on_card: parts in the memory of a graphics card, which `limit` does not count.
            trusted: open parts without checks; for the child process that tries them (`isolated_load`).
        """
        self._bundle, self.limit, self.alone, self._on_card = bundle, limit, alone, frozenset(on_card)
        self._trusted = trusted
        self._open: OrderedDict[str, Part] = OrderedDict()
        self._uses: dict[str, MemoryUse] = {}
        self.limited = limit is not None or alone or not self._plenty()
        """Whether memory is estimated, so that a part may be closed when another is used."""

    def get(self, name: str, make: Callable[[], P], running: int | None = None) -> P:
        """The part with a file name, opened by `make` if it is not open. Others may be closed to free memory.

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
        while others and (self.alone or not self._fits(name, running)):
            oldest = others.pop(0)
            log.debug("closing %s to make room for %s", oldest, name)
            self._open.pop(oldest).close()
        return self._fits(name, running)

    def has_room(self, name: str, more: int) -> bool:
        """Whether a part could take `more` bytes in addition to what it needs."""
        room = self._room(name) if self.limited else None
        return room is None or self.use_of(name).running + more <= room

    def at_once(self, name: str, wanted: int) -> int:
        """Batch size of a part, at most `wanted`, that fits the memory."""
        if not self.limited or wanted == 1:
            return wanted
        use, room = self.use_of(name), self._room(name)
        each = max(1, use.running - use.held)
        return 1 if self.alone else wanted if room is None else max(1, min(wanted, (room - use.held) // each))

    def close(self) -> None:
        """Close all parts, the most recently used first."""
        while self._open:
            self._open.popitem()[1].close()

    def use_of(self, name: str) -> MemoryUse:
        """Memory of a part: the manifest's values, or for a language model an estimate from its header and
        context length.
        """
        if name not in self._uses:
            self._uses[name] = self._estimate(name)
        return self._uses[name]

    def plan(self) -> list[str]:
        """The free memory, the memory of each part, and whether all parts stay open, in lines for people."""
        names = {name for name in self._bundle.manifest.files if name.endswith((".onnx", ".gguf"))}
        lines = self._plan("memory", names - self._on_card, BASE, available_memory(), self.limit)
        return lines + self._plan("graphics card", names & self._on_card, 0, free_gpu_memory(), None)

    def _plan(
        self, place: str, names: Collection[str], base: int, free: int | None, limit: int | None
    ) -> list[str]:
        """The lines for one kind of memory, of which the process itself takes `base` bytes."""
        if not names:
            return []
        held = {name: self.use_of(name).held for name in sorted(names)}
        peak = {name: max(self.use_of(name).opening, self.use_of(name).running) for name in held}
        kept = held if limit is None else {name: self.use_of(name).running for name in held}
        whole = base + sum(kept.values())
        most = whole + max(peak[name] - kept[name] for name in held)
        allowed = free if limit is None else limit
        fits = "they stay open" if allowed is None or most <= allowed else "they make room for one another"
        told = "" if limit is None else f", {_size(limit)} allowed"
        return [
            f"{place}: {'unknown' if free is None else _size(free)} free{told}",
            *(f"  {name}: {_size(held[name])}, at most {_size(peak[name])}" for name in held),
            f"  together: {_size(whole)}, at most {_size(most)}; "
            f"{'one is open at a time' if self.alone else fits}",
        ]

    def _report_shortage(self, name: str, running: int | None) -> None:
        needed = max(self.use_of(name).opening, running or self.use_of(name).running)
        if self.limit is not None and name not in self._on_card:
            raise MemoryShortError(
                f"{self._bundle.path / name} takes {_size(needed + BASE)} with the program around it, "
                f"{_size(self.limit)} are "
                "allowed; raise --memory-limit, or export with smaller weights (--weight-type Q4_K_M, "
                "--image-weights int8)"
            )
        if name not in self._open and not self.alone:
            log.warning(
                "memory is short: %s takes %s, %s are free", name, _size(needed), _size(self._free(name) or 0)
            )

    def _fits(self, name: str, running: int | None) -> bool:
        use, room = self.use_of(name), self._room(name)
        needed = use.running if running is None else running
        return room is None or max(needed, 0 if name in self._open else use.opening) <= room

    def _room(self, name: str) -> int | None:
        """Memory in bytes that a part may take while the other open parts stay open; None if unknown."""
        if self.limit is not None and name not in self._on_card:
            beside = set(self._open) - self._on_card - {name}
            # what a graph took while it worked, it keeps for the next time
            return self.limit - BASE - sum(self.use_of(other).running for other in beside)
        free = self._free(name)
        return None if free is None else free + (self.use_of(name).held if name in self._open else 0)

    def _free(self, name: str) -> int | None:
        return free_gpu_memory() if name in self._on_card else available_memory()

    def _plenty(self) -> bool:
        """Whether so much memory is free that nothing has to be estimated."""
        size, free = sum(entry.size for entry in self._bundle.manifest.files.values()), available_memory()
        return not self._on_card and (free is None or free >= PLENTY_FACTOR * size)

    def _estimate(self, name: str) -> MemoryUse:
        manifest = self._bundle.manifest
        if name in manifest.memory:
            return manifest.memory[name]
        if manifest.language is not None and name == manifest.language.file:
            return language_use(GgufHeader.read(self._bundle.path / name), manifest.language.context_length)
        files = (manifest.files[each].size for each in (name, name + DATA) if each in manifest.files)
        size = sum(files)
        return MemoryUse(size * GUESS.held, size * GUESS.opening, size * GUESS.running)


def language_use(header: GgufHeader, context_length: int) -> MemoryUse:
    """Memory of llama.cpp with a file: the mapped weights, buffers, and keys and values of a full context."""
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
    working = 4 * min(PROMPT_IDS, context_length) * (vocab + 4 * widest)
    held = weights + header.kv_cache_bytes_per_token() * min(PROMPT_IDS, context_length) + working
    return MemoryUse(held, held, weights + header.kv_cache_bytes_per_token() * context_length + working)


def layers_that_fit(header: GgufHeader, context_length: int, free: int) -> int:
    """Layers of a language model, counted from the output, which is one of them, that fit `free` bytes of a
    card.
    """
    blocks = header.number("block_count")
    kept = header.kv_cache_bytes_per_token() * context_length // max(blocks, 1)
    sizes = [0] * blocks
    output = 0
    for name, tensor in header.tensors.items():
        number = name.split(".")[1] if name.startswith("blk.") else ""
        if number.isdecimal() and int(number) < blocks:
            sizes[int(number)] += tensor.size
        elif name in ("output.weight", "output_norm.weight"):
            output += tensor.size
    working = (
        4
        * min(PROMPT_IDS, context_length)
        * max((prod(t.shape[1:]) for t in header.tensors.values()), default=0)
    )
    left, layers = free - working - output, 0
    if left < 0:
        return 0
    for size in reversed(sizes):
        left -= size + kept
        if left < 0:
            break
        layers += 1
    return layers + 1


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
