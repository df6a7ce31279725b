"""Captions and answers: views of an image, beam search, and threads that generate several captions in
parallel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seed_edge.errors import PromptError
from seed_edge.manifest import MAX_BEAMS, MAX_TEMPERATURE, Sampling
from seed_edge.preprocess import ImageSource, as_image
from seed_edge.runtime.engine import Engine
from seed_edge.runtime.generation import Generated, LogitEnsemble, beam_candidates, generate_text, score_text
from seed_edge.runtime.threads import available_cores, threads_for_language_model

if TYPE_CHECKING:
    from seed_edge.runtime.language_model import LlamaCpp

Codes = Sequence[int] | NDArray[np.int64]
"""Codes of one image."""
MAX_ANSWER_IDS = 512
MAX_CAPTION_THREADS = 4
"""Maximum number of captions generated in parallel; Python's global lock makes more useless."""
MAX_SEED = (1 << 63) - 1
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""The last character of a text whose last bytes are not generated yet."""


def check_seed(seed: int) -> None:
    """Check that a seed is an integer in [0, 2**63).

    Raises:
        PromptError: it is not.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
        raise PromptError(f"seed is {seed!r}; it must be an integer from 0 to 2**63 - 1")


@dataclass(frozen=True)
class TextOptions:
    """How text is generated."""

    temperature: float = 0.0
    """0 takes the most probable text; in [0, 100]."""
    seed: int = 0
    """Used with a temperature above 0; in [0, 2**63)."""
    beams: int | None = None
    """Width of the beam search, 1 to 16; None takes the manifest's value."""
    details: bool = False
    """Whether results have tokens and alternatives."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= MAX_TEMPERATURE):
            raise PromptError(f"temperature is {self.temperature}; it must be 0 to {MAX_TEMPERATURE:g}")
        check_seed(self.seed)
        if self.beams is not None and not 1 <= self.beams <= MAX_BEAMS:
            raise PromptError(f"beams is {self.beams}; it must be 1 to {MAX_BEAMS}")


@dataclass(frozen=True)
class Token:
    """One token of a generated text."""

    id: int
    """Id in the language model's vocabulary."""
    text: str
    """The characters that the token adds; the texts of all tokens together are the whole text."""
    log_probability: float
    """Natural logarithm of its probability given the preceding tokens, among text tokens, at temperature 1.
    """


@dataclass(frozen=True)
class ScoredText:
    """A generated text with its scores."""

    text: str
    log_probability: float
    """Sum over the tokens, and over EOS if it was generated."""
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Caption(ScoredText):
    """A caption with its scores. With several views, scores are those of their mean logits."""

    alternatives: tuple[ScoredText, ...] = ()
    """Other texts that the beam search completed, best first by their mean log-probability per token."""


@dataclass(frozen=True)
class Answer(ScoredText):
    """An answer with its scores."""


def scored(model: LlamaCpp, generated: Generated) -> ScoredText:
    """The text of generated ids, with the text and the log-probability of each token."""
    texts, complete = list[str](), ""
    for number in range(1, len(generated.ids) + 1):
        text = model.detokenize(generated.ids[:number])
        finished = number == len(generated.ids) or (
            len(text) > len(complete) and not text.endswith(UNFINISHED)
        )
        texts.append(text[len(complete) :] if finished else "")
        complete = text if finished else complete
    tokens = tuple(map(Token, generated.ids, texts, generated.log_probabilities))
    return ScoredText(complete, math.fsum(generated.log_probabilities), tokens)


class Captioner:
    """Generates captions and answers with the parts of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def captions_of_groups(
        self, groups: Iterable[Sequence[ImageSource]], options: TextOptions
    ) -> Iterator[Caption]:
        """Captions of several groups of images, in order; see `SeedEdge.captions_of_groups`."""
        engine, remaining, workers = self._engine, iter(groups), self.threads()
        count = engine.bundle.language.caption_views if options.temperature == 0 else 1

        def encode(images: Sequence[ImageSource]) -> NDArray[np.int64]:
            return engine.images.encode_views([as_image(image) for image in images], count)

        if workers == 1:
            for images in remaining:
                with engine.locked():
                    views = encode(images)
                for image_views in views:
                    yield self.caption_codes([*image_views], options)
            return
        following = next(remaining, None)
        if following is None:
            return
        with engine.locked():
            views = encode(following)
        with ThreadPoolExecutor(workers + 1) as pool:
            while following is not None:
                following = next(remaining, None)
                with engine.locked():
                    next_views = None if following is None else pool.submit(encode, following)
                    captions = self._in_threads(pool, min(workers, len(views)), views, options)
                    if next_views is not None:
                        views = next_views.result()
                yield from captions

    def threads(self) -> int:
        """Number of captions to generate in parallel: several if the language model is small and uses one
        core.
        """
        engine = self._engine
        small = threads_for_language_model(engine.bundle.language_model.stat().st_size) == 1
        return min(MAX_CAPTION_THREADS, available_cores()) if small and not engine.parts.limited else 1

    def _in_threads(
        self, pool: ThreadPoolExecutor, workers: int, views: NDArray[np.int64], options: TextOptions
    ) -> list[Caption]:
        """Captions of images, given as codes (images, views, codes_per_image), by threads with a context
        each.

        The views of a single image are read by several threads.
        """
        first = self._engine.language_model
        if len(views) == 1:
            return [self._caption(first, [*views[0]], options, pool)]
        models = [first, *(first.cached_context(("captions", number)) for number in range(1, workers))]

        def captions_of(worker: int) -> list[Caption]:
            mine = views[worker::workers]
            return [self._caption(models[worker], [*image_views], options) for image_views in mine]

        results = list(pool.map(captions_of, range(workers)))
        return [results[number % workers][number // workers] for number in range(len(views))]

    def caption_codes(self, views: Sequence[Codes], options: TextOptions) -> Caption:
        """Caption of an image given as the codes of its views."""
        with self._engine.locked():
            return self._caption(self._engine.language_model, views, options)

    def _caption(
        self,
        model: LlamaCpp,
        views: Sequence[Codes],
        options: TextOptions,
        pool: ThreadPoolExecutor | None = None,
    ) -> Caption:
        """A caption that fits all views of an image; with `pool`, its threads read the views in parallel.

        With a temperature, there must be one view.
        """
        language = self._engine.bundle.language
        vocab, max_ids = language.vocab, language.max_caption_ids
        prompts = [
            language.prompts.for_caption(vocab, model.tokenize, vocab.check_codes(codes)) for codes in views
        ]
        beams = language.caption_beams if options.beams is None else options.beams
        if options.temperature == 0 and (beams > 1 or len(prompts) > 1):
            contexts = [model.cached_context((view, beams), beams, max_ids) for view in range(len(prompts))]
            candidates = beam_candidates(
                LogitEnsemble(contexts, prompts, pool), vocab, prompts[0], beams, max_ids
            )
        else:
            candidates = [self._generate(model, prompts[0], max_ids, options)]
        if not options.details:
            return Caption(
                model.detokenize(candidates[0].ids), math.fsum(candidates[0].log_probabilities), ()
            )
        best, *alternatives = (scored(model, candidate) for candidate in candidates)
        return Caption(best.text, best.log_probability, best.tokens, tuple(alternatives))

    def _generate(self, model: LlamaCpp, prompt: list[int], max_ids: int, options: TextOptions) -> Generated:
        """Text that continues a prompt, sampled or greedy; scored only with `options.details`."""
        vocab, sampling = self._engine.bundle.language.vocab, Sampling(options.temperature, 0, 1.0)
        ids = generate_text(model, vocab, prompt, sampling, options.seed, max_ids)
        return (
            score_text(model, vocab, prompt, ids, max_ids) if options.details else Generated(tuple(ids), ())
        )

    def answer_codes(self, images: Sequence[Codes], question: str, options: TextOptions) -> Answer:
        """Answer to a question about images given as codes; see `SeedEdge.ask`."""
        with self._engine.locked():
            language, model = self._engine.bundle.language, self._engine.language_model
            vocab = language.vocab
            checked = [vocab.check_codes(codes) for codes in images]
            prompt = language.prompts.for_question(vocab, model.tokenize, question, checked)
            generated = self._generate(
                model, prompt, min(MAX_ANSWER_IDS, language.context_length // 2), options
            )
            if not options.details:
                return Answer(model.detokenize(generated.ids), 0.0, ())
            result = scored(model, generated)
            return Answer(result.text, result.log_probability, result.tokens)
