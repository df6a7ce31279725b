"""Drawing: prompts and edits to codes, codes to images, and `Drawing`, an image with its provenance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seed_edge.atomic import replacing
from seed_edge.errors import PromptError
from seed_edge.image_metadata import DrawnImage, Record, bundle_hash, encode_image, format_for_path
from seed_edge.manifest import Sampling
from seed_edge.runtime.decoders import OnLatents
from seed_edge.runtime.engine import Engine
from seed_edge.runtime.generation import GREEDY, ClassifierFreeGuidance, sample_codes, sample_codes_batch
from seed_edge.runtime.language_model import GeneratingModel
from seed_edge.runtime.rerank import rerank
from seed_edge.runtime.unclip import DiffusionOptions

MIN_NEGATIVE_GUIDANCE = 1.5
"""Minimum guidance scale with a negative prompt."""
Codes = Sequence[int] | NDArray[np.int64]
"""Codes of one image."""
StageProgress = Callable[[str, int, int], None]
"""Called with the stage (`codes` or `steps`), the number done, and the total."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """A generated image, and what is needed to generate it again."""

    image: Image.Image
    """RGB."""
    codes: NDArray[np.int64]
    """(codes_per_image,), each in [0, codebook_size)."""
    seed: int
    prompt: str
    """The prompt or the edit; empty for an image that was reconstructed from codes."""
    candidates: NDArray[np.int64]
    """(count, codes_per_image): codes of the other candidates of `Sampling.best_of`, in sampling order."""
    provenance: Record
    """The metadata that `save` writes."""

    def resized(self, side: int) -> Drawing:
        """The same drawing with an image of `side` x `side` pixels, by Lanczos resampling."""
        return dataclasses.replace(self, image=resized(self.image, side))

    def to_bytes(self, kind: str = "PNG", *, metadata: bool = True) -> bytes:
        """Content of an image file.

        Args:
            kind: `PNG`, `WEBP` or `JPEG`.
            metadata: include the provenance; without it, the file states only that the image is AI-generated.
        """
        return encode_image(self.image, kind, self.provenance if metadata else None)

    def save(self, path: str | Path, *, metadata: bool = True) -> Path:
        """Write the same file as the command `draw`, and return its path. An existing file is replaced.

        The write is atomic.

        Args:
            path: ends with .png, .webp, .jpg or .jpeg.
            metadata: see `to_bytes`.

        Raises:
            ImageError: the extension is not one of these.
            OSError: the file cannot be written.
        """
        path = Path(path)
        data = self.to_bytes(format_for_path(path), metadata=metadata)
        with replacing(path) as partial:
            partial.write_bytes(data)
        return path

    def _repr_png_(self) -> bytes:
        """The image for notebooks."""
        return self.to_bytes("PNG")


def resized(image: Image.Image, side: int | None) -> Image.Image:
    """The image with `side` x `side` pixels; unchanged for None."""
    if side is None or image.size == (side, side):
        return image
    return image.resize((side, side), Image.Resampling.LANCZOS)


def check_text(text: str, name: str) -> None:
    """Check that an argument is a string, not, for example, a list of prompts.

    Args:
        name: name of the argument, for the message.

    Raises:
        PromptError: `text` is not a string.
    """
    if not isinstance(text, str):
        raise PromptError(f"{name} must be a string, not {type(text).__name__}")


class ImageGenerator:
    """Samples codes from the language model, and renders codes as drawings."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def sampling(self) -> Sampling:
        """How codes are sampled by default; greedy for a bundle without a language model."""
        language = self._engine.bundle.manifest.language
        return GREEDY if language is None else language.sampling

    @cached_property
    def _bundle_hash(self) -> str:
        return bundle_hash(self._engine.bundle)

    def edit_codes(
        self,
        codes: Codes,
        change: str,
        seed: int,
        sampling: Sampling | None,
        progress: Callable[[int, int], None] | None,
    ) -> NDArray[np.int64]:
        """Codes (codes_per_image,) of the image changed as `change` says; see `SeedEdge.edit_codes`."""
        language, model = self._engine.bundle.language, self._engine.language_model
        ids = language.prompts.for_edit(
            language.vocab, model.tokenize, change, [language.vocab.check_codes(codes)]
        )
        return sample_codes(model, language.vocab, ids, sampling or language.sampling, seed, progress)

    def draw_candidates(
        self,
        prompt: str,
        seed: int,
        negative: str | None = None,
        sampling: Sampling | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.int64]:
        """Codes (candidates, codes_per_image) for a prompt: the best first, the others in the order they were
        sampled.

        Args:
            negative: see `SeedEdge.draw_codes`.
            progress: called with the number of codes done and the total.

        Raises:
            PromptError: a prompt is empty or too long, or several candidates are asked of a diffusion.
        """
        language, model = self._engine.bundle.language, self._engine.language_model
        vocab, sampling = language.vocab, sampling or language.sampling
        ids = language.prompts.for_drawing(vocab, model.tokenize, prompt)
        guidance, uncond_ids = (
            sampling.guidance,
            language.prompts.for_unconditional_drawing(vocab, model.tokenize),
        )
        if negative is not None and not self._engine.images.decoder.uses_diffusion:
            guidance = max(guidance, MIN_NEGATIVE_GUIDANCE)
            uncond_ids = language.prompts.for_drawing(vocab, model.tokenize, negative)
        count = self._candidate_count(sampling)
        conditional = (
            model if count == 1 else model.cached_context(("best_of", count), count, vocab.codes_per_image)
        )
        with ExitStack() as stack:
            source: GeneratingModel = conditional
            if guidance != 1:
                branches = (1, 0) if count == 1 else (count, vocab.codes_per_image)
                unconditional = stack.enter_context(model.new_context(*branches))
                source = ClassifierFreeGuidance(conditional, unconditional, uncond_ids, guidance)
            if count == 1:
                return sample_codes(source, vocab, ids, sampling, seed, progress)[None]
            candidates = sample_codes_batch(source, vocab, ids, sampling, seed, progress)
        return self._best_first(candidates, ids, language.prompts.drawing_caption(model.tokenize, prompt))

    def _candidate_count(self, sampling: Sampling) -> int:
        """Candidates to sample for a prompt; one where all would be equal.

        Raises:
            PromptError: several, of a bundle whose diffusion takes minutes for each.
        """
        if sampling.best_of > 1 and self._engine.images.decoder.uses_diffusion:
            raise PromptError(
                f"{self._engine.bundle.path} draws with a diffusion, which is too slow to choose among "
                f"{sampling.best_of} candidates; use --best-of 1"
            )
        return sampling.best_of if sampling.temperature else 1

    def _best_first(
        self, candidates: NDArray[np.int64], prompt: Sequence[int], words: Sequence[int]
    ) -> NDArray[np.int64]:
        """The distinct candidates, the one whose image fits the prompt best first; see `rerank`."""
        distinct = list({tuple(codes): codes for codes in candidates.tolist()}.values())
        if len(distinct) > 1:
            images = self._engine.images
            # one by one: rounding differs in a batch, and may change a code
            decoded = [
                images.decoder.decode(np.array([codes]), 0, DiffusionOptions())[0] for codes in distinct
            ]
            seen = [images.encode([image])[0] for image in decoded]
            model = self._engine.language_model  # opened again if it was closed to free memory
            best = rerank(model, model.tokenize, self._engine.bundle.language, prompt, words, seen)
            distinct.insert(0, distinct.pop(best))
        return np.array(distinct, np.int64)

    def negative_codes(self, negative: str | None, seed: int) -> NDArray[np.int64] | None:
        """Codes (codes_per_image,) that a diffusion is guided away from; None without a negative prompt or a
        diffusion.
        """
        if negative is None or not self._engine.images.decoder.uses_diffusion:
            return None
        codes: NDArray[np.int64] = self.draw_candidates(negative, seed)[0]
        return codes

    def decode(
        self,
        codes: NDArray[np.int64],
        seed: int,
        options: DiffusionOptions | None,
        negative: Codes | None = None,
        progress: Callable[[int, int], None] | None = None,
        on_latents: OnLatents | None = None,
    ) -> list[Image.Image]:
        """Images of codes (batch, codes_per_image) that were checked; see `SeedEdge.decode`."""
        negative_codes = None
        if negative is not None:
            negative_codes = np.repeat(
                self._engine.bundle.manifest.codes.check(negative)[None], len(codes), 0
            )
        decoder = self._engine.images.decoder
        return decoder.decode(
            codes, seed, options or DiffusionOptions(), negative_codes, progress, on_latents
        )

    def render(
        self,
        codes: Codes,
        *,
        prompt: str,
        seed: int,
        negative: str | None,
        temperature: float | None,
        options: DiffusionOptions | None,
        candidates: NDArray[np.int64] | None = None,
        progress: Callable[[int, int], None] | None = None,
        on_latents: OnLatents | None = None,
    ) -> Drawing:
        """A drawing of codes (codes_per_image,); see `SeedEdge.render`."""
        bundle = self._engine.bundle
        checked, options = bundle.manifest.codes.check(codes), options or DiffusionOptions()
        negative_codes = self.negative_codes(negative, seed)
        (image,) = self.decode(checked[None], seed, options, negative_codes, progress, on_latents)
        record = Record(
            prompt=prompt,
            drawn=(DrawnImage(seed, tuple(checked.tolist())),),
            bundle=bundle.manifest.name,
            bundle_hash=self._bundle_hash,
            negative=negative or "",
            temperature=self.sampling.temperature if temperature is None else temperature,
            **self._engine.images.decoder.settings(options),
        )
        others = np.empty((0, len(checked)), np.int64) if candidates is None else candidates
        return Drawing(image, checked, seed, prompt, others, record)
