import itertools

import numpy as np
import pytest

from seed_edge.runtime.unclip import OVERLAP, TILE, decode_tiled, starts


@pytest.mark.parametrize("length", [1, TILE - 1, TILE, TILE + 1, 96, 97, 128])
def test_tiles_cover_every_latent_and_overlap_enough(length):
    at = starts(length)
    covered = np.zeros(length, int)
    for start in at:
        covered[start : start + TILE] += 1
    assert covered.min() >= 1 and at[-1] + TILE >= length and at[0] == 0
    assert all(b - a <= TILE - OVERLAP for a, b in itertools.pairwise(at))


def test_what_does_not_depend_on_neighbours_is_the_same_in_tiles():
    def decode(latents):  # 8 pixels a latent
        return np.repeat(np.repeat(latents[:, :3] ** 2, 8, 2), 8, 3)

    latents = np.random.default_rng(0).standard_normal((2, 4, 96, 70)).astype(np.float32)
    assert np.allclose(decode_tiled(decode, latents, 8), decode(latents), atol=1e-5)


def test_neighbouring_tiles_are_blended_without_a_seam():
    tones = iter([0.0, 1.0])
    tiles = decode_tiled(
        lambda t: np.full((1, 3, t.shape[2], t.shape[3]), next(tones), np.float32),
        np.zeros((1, 4, TILE, 80)),
        1,
    )
    row = tiles[0, 0, 20]
    assert row[0] == 0 and row[-1] == 1 and np.diff(row).min() >= 0 and np.diff(row).max() < 0.2
