"""Start reading here: caption, draw, encode and decode on one bundle."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError, DeviceError, ImageError, PromptError
from seed_edge.gguf_header import GgufHeader
from seed_edge.manifest import MAX_BEAMS, Sampling
from seed_edge.memory import free_gpu_memory
from seed_edge.preprocess import open_image
from seed_edge.runtime.generation import (
    ClassifierFreeGuidance,
    LogitEnsemble,
    beam_search,
    generate_text,
    sample_codes,
    sample_codes_batch,
)
from seed_edge.runtime.image_tokenizer import ImageTokenizer
from seed_edge.runtime.onnx_session import Device, choose_device
from seed_edge.runtime.part_cache import PartCache, layers_that_fit
from seed_edge.runtime.rerank import rerank
from seed_edge.runtime.threads import SMALL_MODEL, available_cores, threads_for_language_model
from seed_edge.runtime.unclip import DiffusionOptions

if TYPE_CHECKING:
    from seed_edge.runtime.language_model import LlamaCpp, GeneratingModel

log = logging.getLogger("seed_edge")

MAX_ANSWER_IDS = 512
MIN_NEGATIVE_GUIDANCE = 1.5
"""Guidance where something is to be kept away from, and the bundle has less."""
MAX_WRITERS = 4
"""Captions written at once; Python itself, which runs in one thread at a time, leaves no use for more."""
ImageSource = Image.Image | str | Path
Codes = Sequence[int] | NDArray[np.int64]
P = ParamSpec("P")
T = TypeVar("T")


def exclusive(method: Callable[Concatenate[SeedEdge, P], T]) -> Callable[Concatenate[SeedEdge, P], T]:
    """Let a method run in one thread at a time, and only in the process that opened the bundle."""

    @functools.wraps(method)
    def alone(self: SeedEdge, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.held():
            return method(self, *args, **kwargs)

    return alone


class SeedEdge:
    """A bundle ready to use. Parts are opened when first needed.

    Threads may share it, and take turns. A process that was forked off cannot: it lacks the threads of the native libraries.
    """

    def __init__(self, bundle: Bundle, device: Device, *, memory_limit: int | None = None, low_memory: bool = False) -> None:
        """See `seed_edge.load`."""
        self.bundle, self._device = bundle, device
        graphs = [name for name in bundle.manifest.files if name.endswith(".onnx")] if device.name == "cuda" else []
        self._parts = PartCache(bundle, limit=memory_limit, alone=low_memory, on_card=graphs)
        self._images = ImageTokenizer(bundle, device, self._parts)
        self._lock, self._process = threading.RLock(), os.getpid()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other threads out for a while.

        Raises:
            DeviceError: this process was forked off the one that opened the bundle.
        """
        if os.getpid() != self._process:
            raise DeviceError(f"{self.bundle.path} was opened before this process was forked off; open it again in this one")
        with self._lock:
            yield

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        device: str = "auto",
        memory_limit: int | None = None,
        low_memory: bool = False,
    ) -> SeedEdge:
        """See `seed_edge.load`."""
        return cls(Bundle.open(bundle), choose_device(device), memory_limit=memory_limit, low_memory=low_memory)

    def memory_plan(self) -> list[str]:
        """What the parts of the bundle take, what is free, and what follows, in lines for people."""
        return self._parts.plan()

    @property
    def _language_model(self) -> LlamaCpp:
        return self._parts.get(self.bundle.language.file, self._open_language_model)

    def _open_language_model(self) -> LlamaCpp:
        from seed_edge.runtime.language_model import LlamaCpp, gpu_offload, performance_warnings

        language, path = self.bundle.language, self.bundle.language_model
        layers = 0
        if path.stat().st_size > SMALL_MODEL:
            for way in performance_warnings(self._device.name == "cuda"):
                log.warning("%s", way)
        if self._device.name == "cuda" and gpu_offload():
            free = free_gpu_memory()
            layers = -1 if free is None else layers_that_fit(GgufHeader.read(path), language.context_length, free)
            log.info("%s: %s on the GPU", path.name, "all layers" if layers < 0 else f"{layers} layers")
        repack = self._parts.has_room(path.name, path.stat().st_size)
        model = LlamaCpp(path, language.context_length, gpu_layers=layers, repack=repack)
        if model.vocab_size != language.vocab.size:
            model.close()
            raise BundleError(
                f"{self.bundle.language_model} has {model.vocab_size} ids, the manifest says {language.vocab.size}; "
                "the files come from different exports; export again"
            )
        return model

    @exclusive
    def close(self) -> None:
        """Free what is open; it is opened again when it is needed."""
        self._parts.close()

    def __enter__(self) -> SeedEdge:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def device(self) -> str:
        """Where graphs run and why, in words: `cpu (no NVIDIA driver found)`."""
        if self._images.device != self._device.name:
            return f"{self._images.device} (ONNX Runtime did not load its CUDA libraries)"
        return f"{self._device.name} ({self._device.reason})"

    def caption(self, image: ImageSource, *, temperature: float = 0.0, seed: int = 0, beams: int | None = None) -> str:
        """Describe an image in words.

        Args:
            image: a PIL image of any size and mode, or the path of an image file.
            temperature: 0 takes the top_k_top_p words; higher values vary, with `seed`.
            beams: captions followed side by side, at temperature 0; by default as the manifest says.

        Raises:
            ImageError: the file cannot be read as an image.
            PromptError: `beams` is not between 1 and 16.
        """
        return next(self.captions([image], temperature=temperature, seed=seed, beams=beams))

    def captions(
        self, images: Sequence[ImageSource], *, temperature: float = 0.0, seed: int = 0, beams: int | None = None
    ) -> Iterator[str]:
        """Captions of images that are encoded together, each as `caption` gives it."""
        return self.captions_of_groups([images], temperature=temperature, seed=seed, beams=beams)

    def captions_of_groups(
        self,
        groups: Iterable[Sequence[ImageSource]],
        *,
        temperature: float = 0.0,
        seed: int = 0,
        beams: int | None = None,
    ) -> Iterator[str]:
        """The same of several groups of images, none of them empty, one after the other.

        Where captions are written by several threads, the next group is encoded meanwhile.
        """
        remaining, workers = iter(groups), self._writers()
        count = self.bundle.language.caption_views if temperature == 0 else 1

        def seen(images: Sequence[ImageSource]) -> NDArray[np.int64]:
            pictures = [image if isinstance(image, Image.Image) else open_image(image) for image in images]
            return self._images.encode_views(pictures, count)

        if workers == 1:
            for images in remaining:
                with self.held():
                    views = seen(images)
                for each in views:
                    yield self._caption([*each], temperature, seed, beams)
            return
        following = next(remaining, None)
        if following is None:
            return
        with self.held():
            views = seen(following)
        with ThreadPoolExecutor(workers + 1) as pool:
            while following is not None:
                following = next(remaining, None)
                with self.held():
                    coming = None if following is None else pool.submit(seen, following)
                    told = self._told_by_several(pool, min(workers, len(views)), views, temperature, seed, beams)
                    if coming is not None:
                        views = coming.result()
                yield from told

    def _told_by_several(
        self,
        pool: ThreadPoolExecutor,
        workers: int,
        views: NDArray[np.int64],
        temperature: float,
        seed: int,
        beams: int | None,
    ) -> list[str]:
        """Captions of images, given as the codes of their views, by so many threads, each with a conversation of its own.

        Of a single image, its views are read by several threads.
        """
        first = self._language_model
        if len(views) == 1:
            return [self._told(first, [*views[0]], temperature, seed, beams, pool)]
        models = [first, *(first.cached_context(("captions", number)) for number in range(1, workers))]

        def told(number: int) -> list[str]:
            return [self._told(models[number], [*each], temperature, seed, beams) for each in views[number::workers]]

        found = list(pool.map(told, range(workers)))
        return [found[number % workers][number // workers] for number in range(len(views))]

    def _writers(self) -> int:
        """How many captions are written at once: several where the language model is so small that each uses one core."""
        small = threads_for_language_model(self.bundle.language_model.stat().st_size) == 1
        return min(MAX_WRITERS, available_cores()) if small and not self._parts.limited else 1

    def caption_codes(self, codes: Codes, *, temperature: float = 0.0, seed: int = 0, beams: int | None = None) -> str:
        """Describe an image given as codes (codes_per_image,); see `caption`."""
        return self._caption([codes], temperature, seed, beams)

    @exclusive
    def _caption(self, views: Sequence[Codes], temperature: float, seed: int, beams: int | None) -> str:
        return self._told(self._language_model, views, temperature, seed, beams)

    def _told(
        self,
        model: LlamaCpp,
        views: Sequence[Codes],
        temperature: float,
        seed: int,
        beams: int | None,
        pool: ThreadPoolExecutor | None = None,
    ) -> str:
        """A caption that fits all views of an image, read by threads of `pool` if given; with a temperature, the only view."""
        language = self.bundle.language
        vocab, most = language.vocab, language.max_caption_ids
        prompts = [language.prompts.for_caption(vocab, model.tokenize, vocab.check_codes(codes)) for codes in views]
        beams = language.caption_beams if beams is None else beams
        if not 1 <= beams <= MAX_BEAMS:
            raise PromptError(f"beams is {beams}; it must be 1 to {MAX_BEAMS}")
        if temperature == 0 and (beams > 1 or len(prompts) > 1):
            followed = [model.cached_context((view, beams), beams, most) for view in range(len(prompts))]
            agreed = LogitEnsemble(followed, prompts, pool)
            return model.detokenize(beam_search(agreed, vocab, prompts[0], beams, most))
        return model.detokenize(generate_text(model, vocab, prompts[0], Sampling(temperature, 0, 1.0), seed, most))

    def ask(self, images: Sequence[ImageSource], question: str, *, temperature: float = 0.0, seed: int = 0) -> str:
        """Answer a question about images.

        Args:
            images: in the order the question speaks of them.
            temperature: 0 takes the top_k_top_p words; higher values vary, with `seed`.

        Raises:
            PromptError: the question is empty or too long, or the bundle's model was not taught to answer.
        """
        return self.ask_codes([*self.encode(images)], question, temperature=temperature, seed=seed)

    @exclusive
    def ask_codes(self, images: Sequence[Codes], question: str, *, temperature: float = 0.0, seed: int = 0) -> str:
        """Answer a question about images given as codes; see `ask`."""
        language, model = self.bundle.language, self._language_model
        vocab = language.vocab
        ids = language.prompts.for_question(vocab, model.tokenize, question, [vocab.check_codes(each) for each in images])
        most = min(MAX_ANSWER_IDS, language.context_length // 2)
        return model.detokenize(generate_text(model, vocab, ids, Sampling(temperature, 0, 1.0), seed, most))

    def edit(
        self,
        image: ImageSource,
        change: str,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
        options: DiffusionOptions | None = None,
    ) -> Image.Image:
        """A picture of the image changed as asked; see `draw`.

        Raises:
            PromptError: `change` is empty or too long, or the bundle's model was not taught to edit.
        """
        self.require_decoder()
        codes = self.edit_codes(self.encode([image])[0], change, seed=seed, sampling=sampling)
        return self.decode(codes, seed=seed, options=options)

    @exclusive
    def edit_codes(
        self,
        codes: Codes,
        change: str,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.int64]:
        """Codes (codes_per_image,) of an image, given as codes, changed as asked; see `edit` and `draw_codes`."""
        language, model = self.bundle.language, self._language_model
        ids = language.prompts.for_edit(language.vocab, model.tokenize, change, [language.vocab.check_codes(codes)])
        return sample_codes(model, language.vocab, ids, sampling or language.sampling, seed, progress)

    def draw(
        self,
        prompt: str,
        *,
        seed: int = 0,
        negative: str | None = None,
        sampling: Sampling | None = None,
        options: DiffusionOptions | None = None,
    ) -> Image.Image:
        """Draw a picture from words; the same seed gives the same picture on the same machine.

        Args:
            negative: what to keep away from, in words.
            sampling: how codes are drawn; by default as the manifest says.
            options: how a diffusion makes pixels of them; by default as the manifest says.

        Raises:
            PromptError: the prompt is empty or too long.
        """
        self.require_decoder()
        codes = self.draw_codes(prompt, seed=seed, negative=negative, sampling=sampling)
        return self.decode(codes, seed=seed, options=options, negative=self.negative_codes(negative, seed=seed))

    def negative_codes(self, negative: str | None, *, seed: int = 0) -> NDArray[np.int64] | None:
        """Codes that a diffusion keeps away from; None where there is none, whose codes keep away already."""
        if negative is None or self.bundle.manifest.kind == "pixels":
            return None
        return self.draw_codes(negative, seed=seed)

    def require_decoder(self) -> None:
        """Refuse a bundle that cannot make pictures, before any work is put into codes.

        Raises:
            BundleError: it has no diffusion and needs one.
        """
        if self.bundle.manifest.kind == "unclip":
            _ = self.bundle.diffusion

    @exclusive
    def draw_codes(
        self,
        prompt: str,
        *,
        seed: int = 0,
        negative: str | None = None,
        sampling: Sampling | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.int64]:
        """Codes (codes_per_image,) for words; see `draw`.

        Args:
            negative: what to keep away from; where a diffusion follows, that does it (`negative_codes`).
            progress: called with codes done and codes in all.
        """
        language, model = self.bundle.language, self._language_model
        vocab, sampling = language.vocab, sampling or language.sampling
        ids = language.prompts.for_drawing(vocab, model.tokenize, prompt)
        guidance, away = sampling.guidance, language.prompts.for_any_drawing(vocab, model.tokenize)
        if negative is not None and self.bundle.manifest.kind == "pixels":
            guidance, away = (
                max(guidance, MIN_NEGATIVE_GUIDANCE),
                language.prompts.for_drawing(vocab, model.tokenize, negative),
            )
        tries = self._candidate_count(sampling)
        asked = model if tries == 1 else model.cached_context(("tries", tries), tries, vocab.codes_per_image)
        with ExitStack() as stack:
            writer: GeneratingModel = asked
            if guidance != 1:
                branches = (1, 0) if tries == 1 else (tries, vocab.codes_per_image)
                writer = ClassifierFreeGuidance(asked, stack.enter_context(model.new_context(*branches)), away, guidance)
            if tries == 1:
                return sample_codes(writer, vocab, ids, sampling, seed, progress)
            drawn = sample_codes_batch(writer, vocab, ids, sampling, seed, progress)
        return self._best_of(drawn, ids, language.prompts.of_drawing(model.tokenize, prompt))

    def _candidate_count(self, sampling: Sampling) -> int:
        """Drawings to make of a prompt; one where all would be the same.

        Raises:
            PromptError: several, of a bundle that takes minutes for each.
        """
        if sampling.best_of > 1 and self.bundle.manifest.kind != "pixels":
            raise PromptError(
                f"{self.bundle.path} draws by a diffusion, too slow to choose among {sampling.best_of} candidates; use --best-of 1"
            )
        return sampling.best_of if sampling.temperature else 1

    def _best_of(self, drawn: NDArray[np.int64], prompt: Sequence[int], words: Sequence[int]) -> NDArray[np.int64]:
        """The codes whose picture is most like what was asked for; see `rerank`."""
        different = list({tuple(codes): codes for codes in drawn.tolist()}.values())
        if len(different) == 1:
            return np.array(different[0], np.int64)
        # one by one, as where memory is short: several at once differ by roundings, and a code may hang on one
        pictures = [self.decode(codes) for codes in different]
        seen = [self._images.encode([picture])[0] for picture in pictures]
        model = self._language_model  # opened anew where it had to make room
        chosen = rerank(model, model.tokenize, self.bundle.language, prompt, words, seen)
        return np.array(different[chosen], np.int64)

    @exclusive
    def encode(self, images: Sequence[ImageSource]) -> NDArray[np.int64]:
        """Turn images into codes.

        Args:
            images: PIL images of any size and mode, or paths of image files; at least one.

        Returns:
            (len(images), codes_per_image), each in [0, codebook_size).

        Raises:
            ImageError: `images` is empty, or a file cannot be read as an image.
        """
        if not len(images):
            raise ImageError("no images to encode; give at least one")
        return self._images.encode([i if isinstance(i, Image.Image) else open_image(i) for i in images])

    @exclusive
    def decode(
        self,
        codes: Codes,
        *,
        seed: int = 0,
        options: DiffusionOptions | None = None,
        negative: Codes | None = None,
        progress: Callable[[int, int], None] | None = None,
        on_latents: Callable[[NDArray[np.float32]], None] | None = None,
    ) -> Image.Image:
        """Turn codes (codes_per_image,) into a picture of `output_size` pixels square.

        Args:
            seed: for decoders that start from noise; one of kind `pixels` gives the same picture for all seeds.
            options: how a diffusion walks; by default as the manifest says.
            negative: codes to keep away from, for a diffusion.
            progress: called with steps done and steps in all, by a diffusion.
            on_latents: called with the latents of a diffusion before its last stage; `decode_latents` makes the picture of them.

        Raises:
            CodesError: wrong count, or outside the codebook.
        """
        space = self.bundle.manifest.codes
        away = None if negative is None else space.check(negative)[None]
        return self._images.decode(space.check(codes)[None], seed, options or DiffusionOptions(), away, progress, on_latents)[0]

    @exclusive
    def decode_latents(self, latents: NDArray[np.float32], *, tiled: bool | None = None) -> Image.Image:
        """Picture of the latents (1, channels, size, size) of a diffusion.

        Args:
            tiled: tile by tile, in less memory; by default where memory is short.

        Raises:
            BundleError: the bundle has no diffusion, or one with other latents.
        """
        return self._images.decode_latents(latents, tiled)[0]
