"""Pools of samples by kind, so that a recipe can give each pool a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seed_edge.data.phrasing import STYLE_WORDS
from seed_edge.data.samples import Sample
from seed_edge.errors import DataError

CANONICAL_STYLE = "noto"
"""Style of the drawings that a request without a style asks for."""

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
"""Drawings in the canonical style; recoloured ones; drawings in other styles; in styles that a prompt can
name; in any style. Drawings of several things. Photos; photos with sentences; photos with a label alone.
"""


def pools_of(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Pool -> numbers of its samples; a sample may be in several pools."""
    canonical = {each.label for each in samples if each.style == CANONICAL_STYLE}
    pools: dict[str, list[int]] = {name: [] for name in POOLS}
    for number, each in enumerate(samples):
        for name in _pools(each, canonical):
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
    unasked = sample.style == CANONICAL_STYLE or sample.label not in canonical
    kind = "other" if not unasked else "coloured" if sample.recoloured else "canonical"
    return ["drawings", kind] + ["styled"] * (sample.style in STYLE_WORDS)


def shared_pools(samples: Sequence[Sample], shares: Mapping[str, float]) -> list[tuple[list[int], float]]:
    """Numbers of the samples of each pool with the weight of the pool; all samples with weight 1 if these
    pools are empty.

    Raises:
        DataError: a pool is unknown.
    """
    unknown = sorted(set(shares) - set(POOLS))
    if unknown:
        raise DataError(f"shares: {unknown[0]} is none of {', '.join(POOLS)}")
    pools = pools_of(samples)
    named = [(pools[name], share) for name, share in shares.items() if pools[name] and share > 0]
    return named or [(list(range(len(samples))), 1.0)]
