"""The methods of `SeedEdge` that return drawings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seed_edge.errors import PromptError
from seed_edge.manifest import Sampling
from seed_edge.preprocess import ImageSource, as_image
from seed_edge.runtime.captioning import check_seed
from seed_edge.runtime.decoders import OnLatents, Progress
from seed_edge.runtime.drawing import Codes, Drawing, ImageGenerator, StageProgress, check_text
from seed_edge.runtime.engine import Engine
from seed_edge.runtime.unclip import DiffusionOptions


class DrawingMethods:
    """Drawings of prompts, edits and codes; a base class of `SeedEdge`."""

    engine: Engine
    generator: ImageGenerator

    def require_decoder(self) -> None:
        """Check that the bundle can make images, before codes are generated.

        Raises:
            BundleError: the bundle needs a diffusion and has none.
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
            sampling: sampling of codes; by default the manifest's.
            options: options of the diffusion; by default the manifest's.
            progress: called with `codes` or `steps`, the number done and the total.
            on_latents: see `decode`.

        Raises:
            PromptError: a prompt is empty or too long, or the seed is out of range.
            BundleError: the bundle cannot make images.
        """
        check_seed(seed)
        check_text(prompt, "prompt")
        self.require_decoder()
        with self.engine.locked():
            codes = self.generator.draw_candidates(
                prompt, seed, negative, sampling, _stage(progress, "codes")
            )
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
        all_seeds = list(range(seed, seed + n)) if seeds is None else list(seeds)
        for number in all_seeds:
            check_seed(number)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return (
            self.draw(text, seed=number, negative=negative, sampling=sampling, options=options)
            for text in texts
            for number in all_seeds
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
        check_text(change, "change")
        self.require_decoder()
        picture = as_image(image)
        with self.engine.locked():
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

    def reconstruct(
        self, image: ImageSource, *, seed: int = 0, options: DiffusionOptions | None = None
    ) -> Drawing:
        """Encode an image and decode its codes; arguments as in `draw`."""
        picture = as_image(image)
        with self.engine.locked():
            return self.render(self.engine.images.encode([picture])[0], seed=seed, options=options)

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
        with self.engine.locked():
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


def _stage(progress: StageProgress | None, stage: str) -> Progress | None:
    """A progress callback for one stage."""
    return None if progress is None else lambda done, total: progress(stage, done, total)
