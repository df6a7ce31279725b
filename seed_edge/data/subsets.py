"""Pools of samples by kind, so that a recipe can give each pool a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seed_edge.data.phrasing import STYLE_WORDS
from seed_edge.data.samples import Sample
from seed_edge.errors import DataError

CANONICAL_STYLE = "noto"
"""Style of the drawings for requests that name no style."""

POOLS = (
    "canonical",
    "coloured",
    "other",
    "styled",
    "drawings",
    "composites",
    "photos",
    "sentences",
    "labelled",
)
"""Drawings of one thing: in the canonical style; recoloured; in other styles; in styles that a prompt can
name; in any style. Drawings of several things. Photos: all; with sentences; with only a label.
"""


def pools_of(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Return the numbers of the samples of each pool; a sample may be in several pools."""
    canonical = {sample.label for sample in samples if sample.style == CANONICAL_STYLE}
    pools: dict[str, list[int]] = {name: [] for name in POOLS}
    for number, sample in enumerate(samples):
        for name in _pools(sample, canonical):
            pools[name].append(number)
    return pools


def _pools(sample: Sample, canonical: set[str | None]) -> list[str]:
    if sample.phrases:
        return ["composites"]
    if sample.style is None:
        return (
            ["photos"]
            + ["sentences"] * bool(sample.captions)
            + ["labelled"] * bool(sample.label and not sample.captions)
        )
    is_default = sample.style == CANONICAL_STYLE or sample.label not in canonical
    kind = "other" if not is_default else "coloured" if sample.recoloured else "canonical"
    return ["drawings", kind] + ["styled"] * (sample.style in STYLE_WORDS)


def shared_pools(samples: Sequence[Sample], shares: Mapping[str, float]) -> list[tuple[list[int], float]]:
    """Return the numbers of the samples of each pool with its weight; all samples with weight 1 if all pools
    are empty.

    Raises:
        DataError: a pool is unknown.
    """
    unknown = sorted(set(shares) - set(POOLS))
    if unknown:
        raise DataError(f"shares: {unknown[0]} is none of {', '.join(POOLS)}")
    pools = pools_of(samples)
    weighted = [(pools[name], share) for name, share in shares.items() if pools[name] and share > 0]
    return weighted or [(list(range(len(samples))), 1.0)]
