"""The open parts of a bundle and their lock; shared by captioning, drawing and conversations."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError, DeviceError
from seed_edge.gguf_header import GgufHeader
from seed_edge.memory import free_gpu_memory
from seed_edge.runtime.image_tokenizer import ImageTokenizer
from seed_edge.runtime.onnx_session import Device
from seed_edge.runtime.part_cache import PartCache, gpu_layers_that_fit
from seed_edge.runtime.threads import SMALL_MODEL

if TYPE_CHECKING:
    from seed_edge.runtime.language_model import LlamaCpp

log = logging.getLogger("seed_edge")


class Engine:
    """Image tokenizer and language model of a bundle; each part is opened when it is first used."""

    def __init__(
        self, bundle: Bundle, device: Device, *, memory_limit: int | None = None, low_memory: bool = False
    ) -> None:
        """
        Args:
            memory_limit: upper limit of this process's memory, in bytes; by default the memory that is free.
            low_memory: keep only one part open at a time.
        """
        graphs = (
            [name for name in bundle.manifest.files if name.endswith(".onnx")]
            if device.name == "cuda"
            else []
        )
        self.bundle = bundle
        self.parts = PartCache(bundle, limit=memory_limit, one_at_a_time=low_memory, on_gpu=graphs)
        self.images = ImageTokenizer(bundle, device, self.parts)
        self._device, self._lock, self._process = device, threading.RLock(), os.getpid()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the engine's lock during the block; reentrant.

        Raises:
            DeviceError: this process was forked from the one that opened the bundle.
        """
        if os.getpid() != self._process:
            raise DeviceError(
                f"{self.bundle.path} was opened before this process was forked; open it again in this process"
            )
        with self._lock:
            yield

    @property
    def language_model(self) -> LlamaCpp:
        """The language model, opened if necessary.

        Raises:
            BundleError: the bundle has none, or it does not match the manifest.
            MemoryShortError: it does not fit the memory limit.
        """
        return self.parts.get(self.bundle.language.file, self._open_language_model)

    def _open_language_model(self) -> LlamaCpp:
        from seed_edge.runtime.language_model import LlamaCpp, gpu_offload, performance_warnings

        language, path = self.bundle.language, self.bundle.language_model
        layers = 0
        if path.stat().st_size > SMALL_MODEL:
            for warning in performance_warnings(self._device.name == "cuda"):
                log.warning("%s", warning)
        if self._device.name == "cuda" and gpu_offload():
            free = free_gpu_memory()
            layers = (
                -1
                if free is None
                else gpu_layers_that_fit(GgufHeader.read(path), language.context_length, free)
            )
            log.info("%s: %s on the GPU", path.name, "all layers" if layers < 0 else f"{layers} layers")
        repack = self.parts.has_free_memory(path.name, path.stat().st_size)
        model = LlamaCpp(path, language.context_length, gpu_layers=layers, repack=repack)
        if model.vocab_size != language.vocab.size:
            model.close()
            raise BundleError(
                f"{self.bundle.language_model} has {model.vocab_size} ids, the manifest says "
                f"{language.vocab.size}; the files come from different exports; export again"
            )
        return model

    def drop_context(self, key: Hashable) -> None:
        """Free the language model context that was cached under `key`, if there is one."""
        with self.locked():
            if self.parts.is_open(self.bundle.language.file):
                self.language_model.drop_context(key)

    def close(self) -> None:
        """Free all open parts; a part is opened again when it is needed."""
        with self.locked():
            self.parts.close()

    @property
    def device(self) -> str:
        """Where the graphs run, and why: `cpu (no NVIDIA driver found)`."""
        if self.images.device != self._device.name:
            return f"{self.images.device} (ONNX Runtime did not load its CUDA libraries)"
        return f"{self._device.name} ({self._device.reason})"
