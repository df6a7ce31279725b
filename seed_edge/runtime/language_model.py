"""Language model interface of the runtime (ids in, logits out), and its implementation with llama.cpp.

Only this module calls llama.cpp. It does not know about images: codes are ids like any other.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seed_edge import native
from seed_edge.errors import BundleError, PromptError
from seed_edge.runtime.threads import cpu_flags, threads_for_language_model

llama_cpp = native.llama_cpp()
BUILD_HERE = "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
WITHOUT_AMX = f"CFLAGS=-U__AMX_INT8__ CXXFLAGS=-U__AMX_INT8__ {BUILD_HERE}"
FIRST_CONTEXT = 512
"""Initial context length in ids; the KV cache of 2,048 ids needs a gigabyte in a LLaMA with 7 billion
weights.
"""

MAX_TEXT_BYTES = 1 << 20
"""Maximum size of a text in bytes, far more than fits any context."""


class LanguageModel(Protocol):
    """The methods of a language model that sampling uses."""

    def prefill(self, ids: Sequence[int], room: int) -> NDArray[np.float32]:
        """Read a prompt and return logits (vocabulary,) for the next id; `room` further ids must fit."""

    def step(self, token_id: int) -> NDArray[np.float32]:
        """Read one more id and return logits (vocabulary,) for the next."""


class BranchingModel(Protocol):
    """The methods of a language model that beam search and parallel sampling use."""

    def prefill(self, ids: Sequence[int], room: int) -> NDArray[np.float32]:
        """See `LanguageModel.prefill`; starts with one branch, number 0."""

    def step_branches(self, ids: Sequence[int], parents: Sequence[int]) -> NDArray[np.float32]:
        """Read one id on each of several new branches, which replace the current branches.

        Args:
            ids: one id for each new branch.
            parents: for each new branch, the number of the current branch that it continues.

        Returns:
            Logits (branches, vocabulary) for the next id of each.
        """


class GeneratingModel(LanguageModel, BranchingModel, Protocol):
    """The methods of a language model that generation with one or several branches uses."""


class ScoringModel(Protocol):
    """The method of a language model that scores text."""

    def score(self, prompt: Sequence[int], ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits (len(ids), vocabulary) for each id of `ids`, given the prompt and the ids before it."""


def amx_in_use() -> bool:
    """Whether this llama.cpp runs AMX kernels, which crash on quantized files when built by gcc 12.

    See llama.cpp issue 20824: the compiler removes the tile configuration. The kernels are part of an "extra
    buffer type"; a model loaded without extra buffer types is safe.
    """
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()


def model_params(gpu_layers: int, repack: bool = True) -> Any:
    """Load parameters of llama.cpp. Its broken AMX kernels are never used.

    Args:
        gpu_layers: layers on the GPU; -1 for all.
        repack: keep a copy of the weights in the layout that is fastest on this processor; otherwise they are
            only mapped.
    """
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.use_extra_bufts = repack and not amx_in_use()
    return params


def performance_warnings(gpu_there: bool = False) -> Iterator[str]:
    """Reasons why language models run slower than they could on this machine, with the remedy; one line each.

    Args:
        gpu_there: whether the graphs run on a GPU.
    """
    if amx_in_use():
        yield (
            "llama.cpp's AMX kernels crash and are disabled, together with its faster weight layouts; fix it "
            f"with: {WITHOUT_AMX}"
        )
    elif "avx2" in cpu_flags() and b"AVX2 = 1" not in llama_cpp.llama_print_system_info():
        yield f"llama.cpp was built without AVX2, which this processor has; fix it with: {BUILD_HERE}"
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active":
        yield (
            "OMP_WAIT_POLICY=active makes threads spin while they wait, which slows other programs; unset it"
        )
    if gpu_there and not gpu_offload():
        yield (
            "llama.cpp was built without CUDA and does not use the GPU; fix it with: "
            f"CMAKE_ARGS=-DGGML_CUDA=on {BUILD_HERE}"
        )


class LlamaCpp:
    """A GGUF file opened by llama.cpp, with one context."""

    def __init__(
        self,
        path: Path,
        context_length: int,
        *,
        gpu_layers: int = 0,
        repack: bool = True,
        precise: bool = False,
        weights: Any = None,
        branches: int = 1,
        branch_length: int = 0,
        check_tensors: bool = False,
    ) -> None:
        """Load a model.

        Args:
            context_length: maximum number of ids of prompt and answer together.
            gpu_layers: layers on the GPU, counted from the last; -1 for all.
            repack: see `model_params`; needs up to the file's size of additional memory.
            precise: KV cache in fp32, to compare with other implementations; slower.
            weights: weights of the same file, loaded by another object that must outlive this one.
            branches: maximum number of branches.
            branch_length: maximum number of ids of each branch.
            check_tensors: read all weights, and refuse values that are not finite.

        Raises:
            BundleError: llama.cpp refuses the file.
        """
        self._path, self._precise, self._borrowed = path, precise, weights is not None
        self._model: Any = weights
        self._context: Any = None
        self._batch: Any = None
        self._contexts: dict[Hashable, LlamaCpp] = {}
        native.clear_llama_errors()
        if not self._borrowed:
            params = model_params(gpu_layers, repack)
            params.check_tensors = check_tensors
            self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise BundleError(
                f"{path} cannot be loaded by llama.cpp ({native.last_llama_error()}); export again"
            )
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._context_length, self._max_branches, self._branch_length = (
            context_length,
            branches,
            branch_length,
        )
        self._open_context(min(context_length, FIRST_CONTEXT))

    def _open_context(self, length: int) -> None:
        """Open a context of `length` ids; the ids read so far are dropped."""
        self._close_context()
        branches = self._max_branches
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = length
        if (
            self._branch_length
        ):  # sequence 0 holds the prompt; branches live in one half of the others, and move to the other
            params.n_ctx += (branches - 1) * self._branch_length + branches
            params.n_seq_max, params.kv_unified = 2 * branches + 1, True
            self._batch = llama_cpp.llama_batch_init(branches, 0, 1)
        if self._precise:
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_threads = params.n_threads_batch = threads_for_language_model(self._path.stat().st_size)
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            self.close()
            raise BundleError(
                f"{self._path}: llama.cpp cannot create a context of {length} ids "
                f"({native.last_llama_error()}); close other programs if memory is short"
            )
        self._memory, self._room = llama_cpp.llama_get_memory(self._context), length
        self._ids: list[int] = []
        self._branches, self._depth = [0], 0

    def _close_context(self) -> None:
        if self._batch:
            llama_cpp.llama_batch_free(self._batch)
        if self._context:
            llama_cpp.llama_free(self._context)
        self._context = self._batch = None

    def close(self) -> None:
        """Free the model and its cached contexts; a second call does nothing."""
        while self._contexts:
            self._contexts.popitem()[1].close()
        self._close_context()
        if self._model and not self._borrowed:
            llama_cpp.llama_model_free(self._model)
        self._model = None

    def create_context(self, branches: int = 1, branch_length: int = 0) -> LlamaCpp:
        """Another context on the same weights, to be closed before this object; arguments as in
        `LlamaCpp`.
        """
        return LlamaCpp(
            self._path,
            self._context_length,
            precise=self._precise,
            weights=self._model,
            branches=branches,
            branch_length=branch_length,
        )

    def cached_context(self, key: Hashable, branches: int = 1, branch_length: int = 0) -> LlamaCpp:
        """The context that is cached under `key`; it is created on first use and freed with this object."""
        if key not in self._contexts:
            self._contexts[key] = self.create_context(branches, branch_length)
        return self._contexts[key]

    def drop_context(self, key: Hashable) -> None:
        """Free the context that is cached under `key`, if there is one."""
        if key in self._contexts:
            self._contexts.pop(key).close()

    @contextmanager
    def new_context(self, branches: int = 1, branch_length: int = 0) -> Iterator[LlamaCpp]:
        """Another context on the same weights for the duration of the block; arguments as in `LlamaCpp`."""
        other = self.create_context(branches, branch_length)
        try:
            yield other
        finally:
            other.close()

    def tokenize(self, text: str) -> list[int]:
        """Ids of literal text, without BOS; nothing is parsed as a control token.

        Raises:
            PromptError: the text is not UTF-8, or has over `MAX_TEXT_BYTES` bytes.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text is not UTF-8 (character {error.start + 1}); write it in UTF-8"
            ) from None
        if len(data) > MAX_TEXT_BYTES:
            raise PromptError(
                f"the text has {len(data):,} bytes, over the limit of {MAX_TEXT_BYTES:,}; shorten it"
            )
        room = len(data) + 2  # at most one id per byte, and a leading space
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, False, False)
        if count < 0:
            raise PromptError(f"llama.cpp needs {-count} ids for a text of {len(data)} bytes; shorten it")
        return list(ids[:count])

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of ids, without leading or trailing white space."""
        array = (llama_cpp.llama_token * len(ids))(*ids)
        room = 64 * len(ids) + 64
        buffer = ctypes.create_string_buffer(room)
        count = llama_cpp.llama_detokenize(self._vocab, array, len(ids), buffer, room, False, False)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = llama_cpp.llama_detokenize(self._vocab, array, len(ids), buffer, -count, False, False)
        text = buffer.raw[:count].decode("utf-8", "replace")
        return "".join(
            c for c in text if c.isprintable() or c in "\n\t"
        ).strip()  # no escapes for a terminal to obey

    def prefill(self, ids: Sequence[int], room: int) -> NDArray[np.float32]:
        """See `LanguageModel.prefill`; a prefix that equals the ids read before is not read again.

        Raises:
            PromptError: prompt and room do not fit the context.
        """
        if len(ids) + room > self._context_length:
            raise PromptError(
                f"the prompt has {len(ids)} ids, but only {self._context_length - room} fit with the answer; "
                "shorten it"
            )
        if len(ids) + room > self._room:
            self._open_context(min(self._context_length, 2 * (len(ids) + room)))
        for branch in self._branches:
            if branch != 0:
                llama_cpp.llama_memory_seq_rm(self._memory, branch, -1, -1)
        self._branches, self._depth = [0], 0
        shared = 0
        while shared < min(len(ids) - 1, len(self._ids)) and ids[shared] == self._ids[shared]:
            shared += 1
        llama_cpp.llama_memory_seq_rm(self._memory, 0, shared, -1)
        self._ids = list(ids[:shared])
        return self._decode(ids[shared:])

    def step(self, token_id: int) -> NDArray[np.float32]:
        return self._decode([token_id])

    def step_branches(self, ids: Sequence[int], parents: Sequence[int]) -> NDArray[np.float32]:
        """See `BranchingModel.step_branches`; for objects created with `branches`."""
        first = 1 + self._max_branches if self._branches[0] in range(1, 1 + self._max_branches) else 1
        branches = list(range(first, first + len(ids)))
        for branch, parent in zip(branches, parents, strict=True):
            llama_cpp.llama_memory_seq_cp(self._memory, self._branches[parent], branch, -1, -1)
        for branch in self._branches:
            if branch != 0:
                llama_cpp.llama_memory_seq_rm(self._memory, branch, -1, -1)
        self._run(_fill_batch(self._batch, ids, [len(self._ids) + self._depth] * len(ids), branches))
        self._branches, self._depth = branches, self._depth + 1
        result = np.empty((len(ids), self.vocab_size), np.float32)
        for row, logits in enumerate(result):
            logits[:] = self._logits_view(row)
        return result

    def score(self, prompt: Sequence[int], ids: Sequence[int]) -> NDArray[np.float32]:
        """See `ScoringModel.score`.

        Raises:
            PromptError: the prompt and the ids do not fit the context.
        """
        logits = [self.prefill(prompt, room=len(ids))]
        read = ids[:-1]
        if not read:
            return logits[0][None]
        batch = llama_cpp.llama_batch_init(len(read), 0, 1)
        try:
            self._run(
                _fill_batch(batch, read, range(len(self._ids), len(self._ids) + len(read)), [0] * len(read))
            )
        finally:
            llama_cpp.llama_batch_free(batch)
        self._ids += read
        return np.stack(logits + [self._logits_view(row) for row in range(len(read))])

    def _decode(self, ids: Sequence[int]) -> NDArray[np.float32]:
        array = (llama_cpp.llama_token * len(ids))(*ids)
        self._run(llama_cpp.llama_batch_get_one(array, len(ids)))
        self._ids += ids
        return self._logits(-1)

    def _run(self, batch: Any) -> None:
        if not self._context:
            raise BundleError(f"{self._path} was closed while it was in use; call again")
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise BundleError(
                f"llama.cpp could not read {batch.n_tokens} ids (status {status}; "
                f"{native.last_llama_error()})"
            )

    def _logits(self, row: int) -> NDArray[np.float32]:
        return self._logits_view(row).copy()

    def _logits_view(self, row: int) -> NDArray[np.float32]:
        """A view of llama.cpp's logits, valid until it runs again."""
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(logits, shape=(self.vocab_size,))


def _fill_batch(batch: Any, ids: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> Any:
    """The batch with these ids, and logits requested for each."""
    batch.n_tokens = len(ids)
    for row, (token_id, position, sequence) in enumerate(zip(ids, positions, sequences, strict=True)):
        batch.token[row], batch.pos[row], batch.logits[row] = token_id, position, True
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
    return batch


def gpu_offload() -> bool:
    """Whether this llama.cpp was built to use a GPU."""
    return bool(llama_cpp.llama_supports_gpu_offload())
