"""The Python API: captions, answers, drawings and codes from one bundle. Start reading here.

The work is done in `captioning.py` (text) and `drawing.py` (images), on the open parts in `engine.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seed_edge.bundle import Bundle
from seed_edge.errors import CodesError, PromptError
from seed_edge.manifest import Sampling
from seed_edge.preprocess import ImageSource, as_image, image_list
from seed_edge.runtime.captioning import Answer, Caption, Captioner, TextOptions, check_seed
from seed_edge.runtime.drawing import Codes, Drawing, ImageGenerator, StageProgress
from seed_edge.runtime.engine import Engine
from seed_edge.runtime.onnx_session import Device, choose_device
from seed_edge.runtime.unclip import DiffusionOptions

Progress = Callable[[int, int], None]
"""Called with the number done and the total."""
OnLatents = Callable[[NDArray[np.float32]], None]


class SeedEdge:
    """An open bundle. Each of its parts is opened when it is first used.

    Threads may share it; calls wait for one another. A forked process cannot use it: it lacks the native libraries' threads.
    """

    def __init__(self, bundle: Bundle, device: Device, *, memory_limit: int | None = None, low_memory: bool = False) -> None:
        """See `seed_edge.load`."""
        self.engine = Engine(bundle, device, memory_limit=memory_limit, low_memory=low_memory)
        self.captioner, self.generator = Captioner(self.engine), ImageGenerator(self.engine)

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

    @property
    def bundle(self) -> Bundle:
        """The bundle: its path and its manifest."""
        return self.engine.bundle

    @property
    def device(self) -> str:
        """Where the graphs run, and why: `cpu (no NVIDIA driver found)`."""
        return self.engine.device

    def memory_plan(self) -> list[str]:
        """The memory that each part takes, and the free memory, in lines for people."""
        return self.engine.parts.plan()

    def close(self) -> None:
        """Free all open parts. The object stays usable: a part is opened again when it is needed."""
        self.engine.close()

    def __enter__(self) -> SeedEdge:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- text

    @overload
    def caption(
        self,
        image: ImageSource,
        *,
        temperature: float = ...,
        seed: int = ...,
        beams: int | None = ...,
        details: Literal[False] = ...,
    ) -> str: ...

    @overload
    def caption(
        self,
        image: ImageSource,
        *,
        temperature: float = ...,
        seed: int = ...,
        beams: int | None = ...,
        details: Literal[True],
    ) -> Caption: ...

    def caption(
        self,
        image: ImageSource,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        beams: int | None = None,
        details: bool = False,
    ) -> str | Caption:
        """Describe an image.

        Args:
            image: a path, bytes of an image file, a binary file object, a PIL image, or pixels (height, width, 3) of uint8.
            temperature: 0 takes the most probable words; higher values vary with `seed`; in [0, 100].
            seed: in [0, 2**63).
            beams: width of the beam search at temperature 0, 1 to 16; by default the manifest's.
            details: return a `Caption` with log-probabilities and alternatives instead of the text.

        Raises:
            ImageError: the image cannot be read; `ImageNotFoundError` if the file does not exist.
            PromptError: an option is out of range.
        """
        options = TextOptions(temperature, seed, beams, details)
        found = next(self.captioner.captions_of_groups([[as_image(image)]], options))
        return found if details else found.text

    def captions(
        self, images: Sequence[ImageSource], *, temperature: float = 0.0, seed: int = 0, beams: int | None = None
    ) -> Iterator[str]:
        """Captions of several images, which are encoded together, in order; each is what `caption` returns.

        Raises:
            ImageError: `images` is a single image or empty, or one cannot be read.
            PromptError: an option is out of range.
        """
        groups = [image_list(images, "images")]
        return self.captions_of_groups(groups, temperature=temperature, seed=seed, beams=beams)

    def captions_of_groups(
        self,
        groups: Iterable[Sequence[ImageSource]],
        *,
        temperature: float = 0.0,
        seed: int = 0,
        beams: int | None = None,
    ) -> Iterator[str]:
        """Captions of several groups of images, in order. Each group has at least one image and is encoded together.

        Where captions are generated by several threads, the next group is encoded at the same time.
        """
        found = self.captioner.captions_of_groups(groups, TextOptions(temperature, seed, beams))
        return (caption.text for caption in found)

    def caption_codes(self, codes: Codes, *, temperature: float = 0.0, seed: int = 0, beams: int | None = None) -> str:
        """Describe an image given as codes (codes_per_image,); see `caption`."""
        return self.captioner.caption_codes([codes], TextOptions(temperature, seed, beams)).text

    @overload
    def ask(
        self,
        images: ImageSource | Sequence[ImageSource],
        question: str,
        *,
        temperature: float = ...,
        seed: int = ...,
        details: Literal[False] = ...,
    ) -> str: ...

    @overload
    def ask(
        self,
        images: ImageSource | Sequence[ImageSource],
        question: str,
        *,
        temperature: float = ...,
        seed: int = ...,
        details: Literal[True],
    ) -> Answer: ...

    def ask(
        self,
        images: ImageSource | Sequence[ImageSource],
        question: str,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        details: bool = False,
    ) -> str | Answer:
        """Answer a question about one image, or about several together.

        Args:
            images: an image as in `caption`, or a list of images in the order in which the question mentions them.
            temperature: 0 takes the most probable words; higher values vary with `seed`; in [0, 100].
            seed: in [0, 2**63).
            details: return an `Answer` with log-probabilities instead of the text.

        Raises:
            ImageError: an image cannot be read, or the list is empty.
            PromptError: the question is empty or too long, an option is out of range, or the model cannot answer questions.
        """
        options = TextOptions(temperature, seed, details=details)
        several = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
        shown: Sequence[ImageSource] = images if several else [images]  # type: ignore[assignment,list-item]  # checked above
        found = self.captioner.answer_codes([*self.encode(shown)], question, options)
        return found if details else found.text

    def answers(
        self, images: Sequence[ImageSource], question: str, *, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[str]:
        """Answers to the same question about each of several images separately, in order; see `ask`."""
        options, codes = TextOptions(temperature, seed), self.encode(images)
        return (self.captioner.answer_codes([each], question, options).text for each in codes)

    def ask_codes(self, images: Sequence[Codes], question: str, *, temperature: float = 0.0, seed: int = 0) -> str:
        """Answer a question about images given as codes; see `ask`."""
        return self.captioner.answer_codes(images, question, TextOptions(temperature, seed)).text

    # ---- images

    def require_decoder(self) -> None:
        """Refuse a bundle that cannot make images, before codes are generated.

        Raises:
            BundleError: it needs a diffusion and has none.
        """
        self.engine.images.decoder.require()

    def draw(
        self,
        prompt: str,
        *,
        seed: int = 0,
        negative: str | None = None,
        sampling: Sampling | None = None,
        options: DiffusionOptions | None = None,
        progress: StageProgress | None = None,
        on_latents: OnLatents | None = None,
    ) -> Drawing:
        """Draw an image of a prompt. The same seed gives the same image on the same machine.

        Args:
            seed: in [0, 2**63).
            negative: negative prompt: what the image should not show.
            sampling: how codes are sampled; by default the manifest's.
            options: of the diffusion; by default the manifest's.
            progress: called with `codes` or `steps`, the number done and the total.
            on_latents: see `decode`.

        Raises:
            PromptError: a prompt is empty or too long, or the seed is out of range.
            BundleError: the bundle cannot make images.
        """
        check_seed(seed)
        _check_text(prompt, "prompt")
        self.require_decoder()
        with self.engine.held():
            codes = self.generator.draw_candidates(prompt, seed, negative, sampling, _stage(progress, "codes"))
            return self.generator.render(
                codes[0],
                prompt=prompt,
                seed=seed,
                negative=negative,
                temperature=None if sampling is None else sampling.temperature,
                options=options,
                candidates=codes[1:],
                progress=_stage(progress, "steps"),
                on_latents=on_latents,
            )

    def drawings(
        self,
        prompts: str | Sequence[str],
        *,
        n: int = 1,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        negative: str | None = None,
        sampling: Sampling | None = None,
        options: DiffusionOptions | None = None,
    ) -> Iterator[Drawing]:
        """Draw several images, one after the other: of each prompt in turn, one for each seed; see `draw`.

        Args:
            prompts: one prompt or several.
            n: images of each prompt, at least 1; their seeds count up from `seed`.
            seeds: the seeds themselves, instead of `n` and `seed`.

        Raises:
            PromptError: `n` is below 1, or a seed is out of range.
        """
        if n < 1:
            raise PromptError(f"n is {n}; it must be 1 or more")
        check_seed(seed)
        chosen = list(range(seed, seed + n)) if seeds is None else list(seeds)
        for each in chosen:
            check_seed(each)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return (
            self.draw(text, seed=each, negative=negative, sampling=sampling, options=options)
            for text in texts
            for each in chosen
        )

    def edit(
        self,
        image: ImageSource,
        change: str,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
        options: DiffusionOptions | None = None,
        progress: StageProgress | None = None,
        on_latents: OnLatents | None = None,
    ) -> Drawing:
        """Draw an image changed as `change` says; arguments as in `caption` and `draw`.

        Raises:
            ImageError: the image cannot be read.
            PromptError: `change` is empty or too long, or the model cannot edit.
        """
        check_seed(seed)
        _check_text(change, "change")
        self.require_decoder()
        picture = as_image(image)
        with self.engine.held():
            before = self.engine.images.encode([picture])[0]
            codes = self.generator.edit_codes(before, change, seed, sampling, _stage(progress, "codes"))
            return self.generator.render(
                codes,
                prompt=change,
                seed=seed,
                negative=None,
                temperature=None if sampling is None else sampling.temperature,
                options=options,
                progress=_stage(progress, "steps"),
                on_latents=on_latents,
            )

    def reconstruct(self, image: ImageSource, *, seed: int = 0, options: DiffusionOptions | None = None) -> Drawing:
        """Encode an image and decode its codes: what the language model can know of it. Arguments as in `draw`."""
        return self.render(self.encode([image])[0], seed=seed, options=options)

    def render(
        self,
        codes: Codes,
        *,
        prompt: str = "",
        seed: int = 0,
        negative: str | None = None,
        temperature: float | None = None,
        options: DiffusionOptions | None = None,
        progress: Progress | None = None,
        on_latents: OnLatents | None = None,
    ) -> Drawing:
        """A `Drawing` of codes (codes_per_image,): `decode` with provenance.

        Args:
            prompt: noted in the provenance.
            negative: negative prompt, for a diffusion; noted in the provenance.
            temperature: noted in the provenance; by default the manifest's.

        Raises:
            CodesError: wrong count, or a code outside the codebook.
        """
        check_seed(seed)
        self.require_decoder()
        with self.engine.held():
            return self.generator.render(
                codes,
                prompt=prompt,
                seed=seed,
                negative=negative,
                temperature=temperature,
                options=options,
                progress=progress,
                on_latents=on_latents,
            )

    # ---- codes

    def encode(self, images: Sequence[ImageSource] | NDArray[np.uint8]) -> NDArray[np.int64]:
        """Encode images as codes.

        Args:
            images: a list of images as in `caption`, or an array (count, height, width, 3) of uint8.

        Returns:
            (len(images), codes_per_image), each in [0, codebook_size).

        Raises:
            ImageError: `images` is empty or a single image, or one cannot be read.
        """
        pictures = image_list(images, "images")
        with self.engine.held():
            return self.engine.images.encode([as_image(picture) for picture in pictures])

    def draw_codes(
        self,
        prompt: str,
        *,
        seed: int = 0,
        negative: str | None = None,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.int64]:
        """Codes (codes_per_image,) of a prompt; see `draw`.

        Args:
            negative: negative prompt; ignored where a diffusion follows, which it guides instead.
            progress: called with the number of codes done and the total.
        """
        check_seed(seed)
        _check_text(prompt, "prompt")
        with self.engine.held():
            best: NDArray[np.int64] = self.generator.draw_candidates(prompt, seed, negative, sampling, progress)[0]
        return best

    def edit_codes(
        self,
        codes: Codes,
        change: str,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.int64]:
        """Codes (codes_per_image,) of an image, given as codes, changed as `change` says; see `edit` and `draw_codes`."""
        check_seed(seed)
        with self.engine.held():
            return self.generator.edit_codes(codes, change, seed, sampling, progress)

    def decode(
        self,
        codes: Codes,
        *,
        seed: int = 0,
        options: DiffusionOptions | None = None,
        negative: Codes | None = None,
        progress: Progress | None = None,
        on_latents: OnLatents | None = None,
    ) -> Image.Image:
        """Decode codes (codes_per_image,) as an image of `output_size` pixels square.

        Args:
            seed: of a diffusion's noise; decoders of kind `pixels` give the same image for all seeds.
            options: of the diffusion; by default the manifest's.
            negative: codes that the diffusion is guided away from.
            progress: called with the number of diffusion steps done and the total.
            on_latents: called with the diffusion's latents (1, channels, size, size), which `decode_latents` accepts.

        Raises:
            CodesError: wrong count, or a code outside the codebook.
        """
        check_seed(seed)
        checked = self.bundle.manifest.codes.check(codes)[None]
        with self.engine.held():
            return self.generator.decode(checked, seed, options, negative, progress, on_latents)[0]

    def decode_batch(
        self, codes: Sequence[Codes] | NDArray[np.int64], *, seed: int = 0, options: DiffusionOptions | None = None
    ) -> list[Image.Image]:
        """Decode codes (count, codes_per_image) as images; see `decode`. Each image is what `decode` gives for its codes."""
        check_seed(seed)
        space = self.bundle.manifest.codes
        if len(codes) and np.ndim(codes[0]) != 1:
            raise CodesError("codes must be those of several images: (count, codes_per_image); write [codes]")
        checked = [space.check(each) for each in codes]
        with self.engine.held():
            return [self.generator.decode(each[None], seed, options)[0] for each in checked]

    def decode_latents(self, latents: NDArray[np.float32], *, tiled: bool | None = None) -> Image.Image:
        """Decode a diffusion's latents (1, channels, size, size) as an image.

        Args:
            tiled: decode in tiles, in less memory; None decides by the free memory.

        Raises:
            BundleError: the bundle has no diffusion, or one with latents of another shape.
        """
        with self.engine.held():
            return self.engine.images.decoder.decode_latents(latents, tiled)[0]


def _stage(progress: StageProgress | None, stage: str) -> Progress | None:
    """A progress callback for one stage."""
    return None if progress is None else lambda done, total: progress(stage, done, total)


def _check_text(text: str, name: str) -> None:
    if not isinstance(text, str):
        raise PromptError(f"{name} must be a text, not {type(text).__name__}")
