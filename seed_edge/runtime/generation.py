"""Which id comes next: text ids only, or code ids only, drawn with a seed.

A picture is exactly `codes_per_image` draws from the code range; there is no searching for EOI, no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from seed_edge.manifest import Sampling
from seed_edge.runtime.language_model import BranchingModel, LanguageModel, GeneratingModel
from seed_edge.vocab import Vocab

SORTED_FIRST = 256
"""Weights that are sorted at first where a share of all is asked for."""
BLOCK = 256
"""Weights that are summed at once where one is drawn of many; a running sum of all takes ten times as long."""
DRAWN_AGAIN_FROM = 0.25
"""Share of all from which on it is quicker to draw until one is among the top_k_top_p than to sort them."""
GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0)


def sample_token(logits: NDArray[np.float32], sampling: Sampling, rng: np.random.Generator) -> int:
    """Position of the chosen logit; -inf is never chosen."""
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    if DRAWN_AGAIN_FROM <= sampling.top_p < 1 and not sampling.top_k:
        return _from_nucleus(weights, sampling.top_p, rng)
    kept = top_k_top_p(weights, sampling.top_k, sampling.top_p)
    cumulative = np.cumsum(weights[kept])
    return int(kept[min(int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")), len(kept) - 1)])


def _from_nucleus(weights: NDArray[np.float64], top_p: float, rng: np.random.Generator) -> int:
    """Position of one of the largest weights that hold a share of `top_p`, as `top_k_top_p` says which these are.

    Sorts nothing: one is drawn of all, until it is among them, which it is when the larger ones do not yet hold that share.
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
    """Positions of the `top_k` largest weights (0: all), of these as few as hold a share of `top_p`.

    Largest first, but where all are kept. Sorts no more than it must: a full sort takes as long as a small model.
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
    found = np.argpartition(-weights, count - 1)[:count]
    found.sort()
    return found[np.argsort(-weights[found], kind="stable")]


class ClassifierFreeGuidance:
    """Two conversations read side by side, one that asks for a picture and one that asks for none.

    Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) on the logits of codes.
    """

    def __init__(self, asked: GeneratingModel, unasked: GeneratingModel, bare: Sequence[int], guidance: float) -> None:
        """
        Args:
            bare: ids of the prompt without words.
            guidance: 1 is `asked` alone; higher values leave `unasked` further behind.
        """
        self._asked, self._unasked, self._bare, self._guidance = asked, unasked, bare, guidance

    def prefill(self, ids: Sequence[int], room: int) -> NDArray[np.float32]:
        return self._mixed(self._asked.prefill(ids, room), self._unasked.prefill(self._bare, room))

    def step(self, token_id: int) -> NDArray[np.float32]:
        return self._mixed(self._asked.step(token_id), self._unasked.step(token_id))

    def step_branches(self, ids: Sequence[int], parents: Sequence[int]) -> NDArray[np.float32]:
        return self._mixed(self._asked.step_branches(ids, parents), self._unasked.step_branches(ids, parents))

    def _mixed(self, asked: NDArray[np.float32], unasked: NDArray[np.float32]) -> NDArray[np.float32]:
        return unasked + np.float32(self._guidance) * (asked - unasked)


class LogitEnsemble:
    """Several prompts read side by side that ask for the same text: what all of them find likely is written."""

    def __init__(
        self, models: Sequence[BranchingModel], prompts: Sequence[list[int]], pool: ThreadPoolExecutor | None = None
    ) -> None:
        """
        Args:
            models: one for each prompt.
            pool: threads that read prompts at the same time, instead of one after the other.
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
        progress: called with codes done and codes in all.
    """
    rng = np.random.default_rng(seed)
    logits = model.prefill(prompt, room=vocab.codes_per_image)
    codes: list[int] = []
    while True:
        codes.append(sample_token(logits[vocab.first_code_id : vocab.first_code_id + vocab.codebook_size], sampling, rng))
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
    """The same `sampling.best_of` times side by side: codes (best_of, codes_per_image), the first with the same seed alone."""
    rngs = [np.random.default_rng((seed, number) if number else seed) for number in range(sampling.best_of)]
    codes = np.empty((vocab.codes_per_image, sampling.best_of), np.int64)
    logits, parents = model.prefill(prompt, room=vocab.codes_per_image)[None], [0] * sampling.best_of
    for place, chosen in enumerate(codes):
        if place:
            logits = model.step_branches([vocab.first_code_id + int(code) for code in codes[place - 1]], parents)
            parents = list(range(sampling.best_of))
        known = logits[:, vocab.first_code_id : vocab.first_code_id + vocab.codebook_size]
        chosen[:] = [sample_token(known[parent], sampling, rng) for parent, rng in zip(parents, rngs, strict=True)]
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
    model: LanguageModel, vocab: Vocab, prompt: list[int], text: Sampling, codes: Sampling, seed: int, max_ids: int
) -> Iterator[int | NDArray[np.int64]]:
    """What continues a prompt: text ids one by one, and the codes (codes_per_image,) of pictures, up to EOS or `max_ids`.

    Args:
        text: how text ids are drawn; BOI, which begins a picture, is among them.
        codes: how the codes of pictures are.
        max_ids: most text ids; a picture takes `codes_per_image + 2` of them, and is begun only where it fits.
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
            drawn.append(sample_token(logits[vocab.first_code_id : vocab.first_code_id + vocab.codebook_size], codes, rng))
            logits = model.step(vocab.first_code_id + drawn[-1])
        left -= picture
        yield vocab.check_codes(drawn)
        logits = model.step(vocab.eoi_id)


def beam_search(model: BranchingModel, vocab: Vocab, prompt: list[int], beams: int, max_ids: int) -> list[int]:
    """Text ids that continue a prompt, up to EOS or `max_ids`: likely ones as a whole, not one by one.

    Beam search: the `beams` top_k_top_p beginnings are followed side by side; of those that end, the one whose ids have the
    highest mean log-probability is taken. EOS is not returned.
    """
    allowed = np.flatnonzero(vocab.text_mask())
    found = log_probabilities(model.prefill(prompt, room=max_ids)[None, allowed])
    written: list[tuple[int, ...]] = [()]
    scores = np.zeros(1)
    ended: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, max_ids + 1):
        totals = (scores[:, None] + found).ravel()
        kept: list[tuple[int, int, float]] = []
        for position in _largest(totals, 2 * beams):  # at most half of these end here
            parent, column = divmod(int(position), len(allowed))
            if allowed[column] == vocab.eos_id:
                ended.append((totals[position] / length, written[parent]))
            else:
                kept.append((parent, int(allowed[column]), totals[position]))
            if len(kept) == beams:
                break
        best = max(ended, default=(-np.inf, ()))
        if length == max_ids or (len(ended) >= beams and best[0] >= kept[0][2] / length):
            break
        written = [(*written[parent], token_id) for parent, token_id, _ in kept]
        scores = np.array([score for *_, score in kept])
        parents, ids = [parent for parent, *_ in kept], [token_id for _, token_id, _ in kept]
        found = log_probabilities(model.step_branches(ids, parents)[:, allowed])
    return list(best[1] if ended else (*written[kept[0][0]], kept[0][1]))


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of logits (rows, ids), those in a row being all that may come."""
    shifted: NDArray[np.float64] = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted
