"""Generation of text ids and image codes from a language model's logits: seeded sampling and beam search.

An image is exactly `codes_per_image` samples from the range of codes, without a search for EOI and without
padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seed_edge.manifest import Sampling
from seed_edge.runtime.language_model import BranchingModel, GeneratingModel, LanguageModel, ScoringModel
from seed_edge.vocab import Vocab

SORTED_FIRST = 256
"""Number of weights that `top_k_top_p` sorts first if `top_k` is 0."""
BLOCK = 256
"""Number of weights per block sum in nucleus sampling; a cumulative sum of all weights takes ten times as
long.
"""
MIN_TOP_P_FOR_REJECTION = 0.25
"""The lowest `top_p` for which rejection sampling is faster than sorting."""
GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0)


@dataclass(frozen=True)
class Generated:
    """Text ids that a model generated."""

    ids: tuple[int, ...]
    """Without EOS."""
    log_probabilities: tuple[float, ...]
    """Natural logarithm of each id's probability among text ids; if the text ended, also that of EOS."""

    def followed_by(self, token_id: int, log_probability: float, eos_id: int) -> Generated:
        """The text extended by one id; EOS adds only its log-probability."""
        ids = self.ids if token_id == eos_id else (*self.ids, token_id)
        return Generated(ids, (*self.log_probabilities, log_probability))


def sample_token(logits: NDArray[np.float32], sampling: Sampling, rng: np.random.Generator) -> int:
    """Sample the position of a logit; -inf is never chosen."""
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    if MIN_TOP_P_FOR_REJECTION <= sampling.top_p < 1 and not sampling.top_k:
        return _from_nucleus(weights, sampling.top_p, rng)
    candidates = top_k_top_p(weights, sampling.top_k, sampling.top_p)
    cumulative = np.cumsum(weights[candidates])
    index = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return int(candidates[min(index, len(candidates) - 1)])


def _from_nucleus(weights: NDArray[np.float64], top_p: float, rng: np.random.Generator) -> int:
    """Position of a weight sampled from the nucleus of `top_p`, which `top_k_top_p` defines.

    Nothing is sorted: positions are sampled from all weights until one lies in the nucleus, that is, until
    the larger weights together have less than `top_p` of the sum.
    """
    starts = np.arange(0, len(weights), BLOCK)
    blocks = np.cumsum(np.add.reduceat(weights, starts))
    enough = top_p * blocks[-1]
    while True:
        drawn = rng.random() * blocks[-1]
        block = min(int(np.searchsorted(blocks, drawn, side="right")), len(starts) - 1)
        within = np.cumsum(weights[starts[block] : starts[block] + BLOCK])
        place = np.searchsorted(within, drawn - (blocks[block - 1] if block else 0), side="right")
        chosen = int(starts[block]) + min(int(place), len(within) - 1)
        weight = weights[chosen]
        before = (weights * (weights > weight)).sum() + weight * np.count_nonzero(weights[:chosen] == weight)
        if before < enough:
            return chosen


def top_k_top_p(weights: NDArray[np.float64], top_k: int, top_p: float) -> NDArray[np.int64]:
    """Positions of the `top_k` largest weights (0: all), and of these the fewest that together have `top_p`
    of the sum.

    Largest first, or in their order if all are kept. Only part of the weights is sorted: a full sort takes as
    long as a step of a small model.
    """
    if top_p == 1:
        return _largest(weights, top_k) if top_k else np.arange(len(weights))
    count = top_k or SORTED_FIRST
    while True:
        order = _largest(weights, count)
        cumulative = np.cumsum(weights[order])
        enough = top_p * (cumulative[-1] if top_k else weights.sum())
        if top_k or cumulative[-1] >= enough or len(order) == len(weights):
            return order[: int(np.searchsorted(cumulative, enough)) + 1]
        count *= 8


def _largest(weights: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Positions of the `count` largest weights, largest first."""
    if count >= len(weights):
        return np.argsort(-weights, kind="stable")
    largest = np.argpartition(-weights, count - 1)[:count]
    largest.sort()
    return largest[np.argsort(-weights[largest], kind="stable")]


class ClassifierFreeGuidance:
    """Mixes the logits of a conditional and an unconditional context.

    Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) on the logits of codes.
    """

    def __init__(
        self,
        conditional: GeneratingModel,
        unconditional: GeneratingModel,
        uncond_ids: Sequence[int],
        guidance: float,
    ) -> None:
        """
        Args:
            uncond_ids: ids of the unconditional prompt.
            guidance: guidance scale; 1 gives the logits of `conditional`.
        """
        self._conditional, self._unconditional = conditional, unconditional
        self._uncond_ids, self._guidance = uncond_ids, guidance

    def prefill(self, ids: Sequence[int], room: int) -> NDArray[np.float32]:
        return self._mixed(
            self._conditional.prefill(ids, room), self._unconditional.prefill(self._uncond_ids, room)
        )

    def step(self, token_id: int) -> NDArray[np.float32]:
        return self._mixed(self._conditional.step(token_id), self._unconditional.step(token_id))

    def step_branches(self, ids: Sequence[int], parents: Sequence[int]) -> NDArray[np.float32]:
        return self._mixed(
            self._conditional.step_branches(ids, parents), self._unconditional.step_branches(ids, parents)
        )

    def _mixed(
        self, conditional: NDArray[np.float32], unconditional: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        return unconditional + np.float32(self._guidance) * (conditional - unconditional)


class LogitEnsemble:
    """The mean of the logits of several contexts with different prompts for the same text."""

    def __init__(
        self,
        models: Sequence[BranchingModel],
        prompts: Sequence[list[int]],
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        """
        Args:
            models: one for each prompt.
            pool: threads that run the models in parallel; by default they run one after the other.
        """
        self._models, self._prompts, self._map = models, prompts, map if pool is None else pool.map

    def prefill(self, ids: Sequence[int], room: int) -> NDArray[np.float32]:
        """Read all prompts; `ids` is the first of them."""
        return self._mean(self._map(lambda model, own: model.prefill(own, room), self._models, self._prompts))

    def step_branches(self, ids: Sequence[int], parents: Sequence[int]) -> NDArray[np.float32]:
        return self._mean(self._map(lambda model: model.step_branches(ids, parents), self._models))

    def _mean(self, logits: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
        mean: NDArray[np.float32] = np.mean([*logits], axis=0)
        return mean


def sample_codes(
    model: LanguageModel,
    vocab: Vocab,
    prompt: list[int],
    sampling: Sampling,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.int64]:
    """Codes (codes_per_image,) that continue a prompt ending with BOI.

    Args:
        progress: called with the number of codes done and the total.
    """
    rng = np.random.default_rng(seed)
    logits = model.prefill(prompt, room=vocab.codes_per_image)
    codes: list[int] = []
    while True:
        codes.append(
            sample_token(
                logits[vocab.first_code_id : vocab.first_code_id + vocab.codebook_size], sampling, rng
            )
        )
        if progress is not None:
            progress(len(codes), vocab.codes_per_image)
        if len(codes) == vocab.codes_per_image:
            return vocab.check_codes(codes)
        logits = model.step(vocab.first_code_id + codes[-1])


def sample_codes_batch(
    model: BranchingModel,
    vocab: Vocab,
    prompt: list[int],
    sampling: Sampling,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.int64]:
    """Codes (best_of, codes_per_image) of several candidates sampled in parallel; the first is what
    `sample_codes` returns.
    """
    rngs = [np.random.default_rng((seed, number) if number else seed) for number in range(sampling.best_of)]
    codes = np.empty((vocab.codes_per_image, sampling.best_of), np.int64)
    logits, parents = model.prefill(prompt, room=vocab.codes_per_image)[None], [0] * sampling.best_of
    for place, chosen in enumerate(codes):
        if place:
            logits = model.step_branches(
                [vocab.first_code_id + int(code) for code in codes[place - 1]], parents
            )
            parents = list(range(sampling.best_of))
        known = logits[:, vocab.first_code_id : vocab.first_code_id + vocab.codebook_size]
        chosen[:] = [
            sample_token(known[parent], sampling, rng) for parent, rng in zip(parents, rngs, strict=True)
        ]
        if progress is not None:
            progress(place + 1, len(codes))
    return np.stack([vocab.check_codes(each) for each in codes.T])


def generate_text(
    model: LanguageModel, vocab: Vocab, prompt: list[int], sampling: Sampling, seed: int, max_ids: int
) -> list[int]:
    """Text ids that continue a prompt, up to EOS or `max_ids`; EOS is not returned."""
    rng = np.random.default_rng(seed)
    mask = vocab.text_mask()
    logits = model.prefill(prompt, room=max_ids)
    ids: list[int] = []
    while len(ids) < max_ids:
        chosen = sample_token(np.where(mask, logits, -np.inf), sampling, rng)
        if chosen == vocab.eos_id:
            break
        ids.append(chosen)
        logits = model.step(chosen)
    return ids


def generate_interleaved(
    model: LanguageModel,
    vocab: Vocab,
    prompt: list[int],
    text: Sampling,
    codes: Sampling,
    seed: int,
    max_ids: int,
) -> Iterator[int | NDArray[np.int64]]:
    """Text and images that continue a prompt: yields text ids, and codes (codes_per_image,), up to EOS or
    `max_ids`.

    Args:
        text: sampling of text ids, including BOI, which begins an image.
        codes: sampling of the codes of images.
        max_ids: maximum number of ids; an image has `codes_per_image + 2`, and is started only if they fit.
    """
    rng = np.random.default_rng(seed)
    mask, picture = vocab.text_mask(), vocab.codes_per_image + 2
    left = max_ids
    logits = model.prefill(prompt, room=max_ids)
    while left > 0:
        mask[vocab.boi_id] = left >= picture
        chosen = sample_token(np.where(mask, logits, -np.inf), text, rng)
        if chosen == vocab.eos_id:
            return
        if chosen != vocab.boi_id:
            left -= 1
            yield chosen
            logits = model.step(chosen)
            continue
        logits, drawn = model.step(chosen), list[int]()
        while len(drawn) < vocab.codes_per_image:
            drawn.append(
                sample_token(
                    logits[vocab.first_code_id : vocab.first_code_id + vocab.codebook_size], codes, rng
                )
            )
            logits = model.step(vocab.first_code_id + drawn[-1])
        left -= picture
        yield vocab.check_codes(drawn)
        logits = model.step(vocab.eoi_id)


def score_text(
    model: ScoringModel, vocab: Vocab, prompt: list[int], ids: list[int], max_ids: int
) -> Generated:
    """Log-probabilities of text ids that `generate_text` returned for this prompt, at temperature 1.

    Args:
        max_ids: as passed to `generate_text`; if there are fewer ids, EOS is scored too.
    """
    allowed = np.flatnonzero(vocab.text_mask())
    scored = ids if len(ids) == max_ids else [*ids, vocab.eos_id]
    rows = log_probabilities(model.score(prompt, scored)[:, allowed])
    columns = np.searchsorted(allowed, scored)
    return Generated(tuple(ids), tuple(float(row[column]) for row, column in zip(rows, columns, strict=True)))


def beam_search(
    model: BranchingModel, vocab: Vocab, prompt: list[int], beams: int, max_ids: int
) -> list[int]:
    """Text ids that continue a prompt: the best sequence of `beam_candidates`. EOS is not returned."""
    return list(beam_candidates(model, vocab, prompt, beams, max_ids)[0].ids)


def beam_candidates(
    model: BranchingModel, vocab: Vocab, prompt: list[int], beams: int, max_ids: int
) -> list[Generated]:
    """Text that continues a prompt, up to EOS or `max_ids`, by beam search.

    The `beams` most probable sequences are extended in parallel. Complete sequences are ranked by their mean
    log-probability.

    Returns:
        The sequences that ended, best first; if none ended, the beams, best first. At least one.
    """
    allowed = np.flatnonzero(vocab.text_mask())
    following = log_probabilities(model.prefill(prompt, room=max_ids)[None, allowed])
    active = [Generated((), ())]
    totals = np.zeros(1)
    ended: list[tuple[float, Generated]] = []
    for length in range(1, max_ids + 1):
        scores = (totals[:, None] + following).ravel()
        parents, extended, new_totals = list[int](), list[Generated](), list[float]()
        for position in _largest(scores, 2 * beams):  # at most half of these end here
            parent, column = divmod(int(position), len(allowed))
            grown = active[parent].followed_by(
                int(allowed[column]), float(following[parent, column]), vocab.eos_id
            )
            if allowed[column] == vocab.eos_id:
                ended.append((scores[position] / length, grown))
            else:
                parents.append(parent)
                extended.append(grown)
                new_totals.append(scores[position])
            if len(extended) == beams:
                break
        best = max((score for score, _ in ended), default=-np.inf)
        if length == max_ids or (len(ended) >= beams and best >= new_totals[0] / length):
            break
        active, totals = extended, np.array(new_totals)
        following = log_probabilities(
            model.step_branches([each.ids[-1] for each in active], parents)[:, allowed]
        )
    ended.sort(key=lambda each: (each[0], each[1].ids), reverse=True)
    return [generated for _, generated in ended] or extended


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-softmax over each row of logits (rows, ids), in float64."""
    shifted: NDArray[np.float64] = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted
