import dataclasses

import numpy as np
import pytest
import torch

from seed_edge.data.samples import Sample
from seed_edge.models.config import PixelGeometry
from seed_edge.models.image_tokenizer import PixelTokenizer, patches_of
from seed_edge.train.pixel.feature_cache import VIEWS, Cache
from seed_edge.train.pixel.feature_noise import FeatureNoise
from seed_edge.train.pixel.patch_pca import fit_patches

THINGS, STYLES, QUERIES, DIM = 6, 5, 2, 3


@pytest.fixture
def drawings():
    """Vectors that are a thing's place plus a style's offset, for drawings; and photos that move when they
    are cropped.
    """
    rng = np.random.default_rng(0)
    places, offsets = 100 * rng.normal(size=(THINGS, QUERIES, DIM)), rng.normal(size=(STYLES, QUERIES, DIM))
    samples, vectors = [], []
    for thing in range(THINGS):
        for style in range(STYLES):
            samples.append(
                Sample(
                    f"{thing}-{style}", label=f"thing {thing}", style=f"style {style}", held_out=style == 0
                )
            )
            vectors += [places[thing] + offsets[style]] * VIEWS
    for photo in range(4):
        samples.append(Sample(f"photo-{photo}", captions=("a photo",)))
        first = 100 * rng.normal(size=(QUERIES, DIM))
        vectors += [first, first + 1.0]
    return samples, np.array(vectors, np.float32), places


def test_a_drawing_varies_as_styles_do_and_stays_the_thing_it_is(drawings):
    samples, vectors, places = drawings
    varied = FeatureNoise(samples, vectors)
    rows = np.array([i * VIEWS for i, s in enumerate(samples) if s.style and not s.held_out])
    drawn = np.stack([varied(rows, np.random.default_rng(seed)) for seed in range(20)])
    moved = np.abs(drawn - vectors[rows])
    assert 0.1 < moved.mean() < 3  # as much as styles differ
    things = np.array([int(samples[row // VIEWS].label[-1]) for row in rows])
    nearest = np.linalg.norm(drawn[:, :, None] - places, axis=(-2, -1)).argmin(-1)
    assert (nearest == things).all()
    assert np.array_equal(varied(rows, np.random.default_rng(3)), drawn[3])


def test_styles_that_are_held_out_are_not_told(drawings):
    samples, vectors, _ = drawings
    rows = np.array([i * VIEWS for i, s in enumerate(samples) if s.style and not s.held_out])
    before = FeatureNoise(samples, vectors)(rows, np.random.default_rng(0))
    hidden = np.repeat([s.held_out for s in samples], VIEWS)
    vectors[hidden] += 1e6
    assert np.array_equal(FeatureNoise(samples, vectors)(rows, np.random.default_rng(0)), before)


def test_a_photo_varies_as_photos_do_when_they_are_cropped(drawings):
    samples, vectors, _ = drawings
    rows = np.array([i * VIEWS for i, s in enumerate(samples) if s.style is None])
    moved = FeatureNoise(samples, vectors)(rows, np.random.default_rng(0)) - vectors[rows]
    assert (moved > 0).all() and (moved < 1).all() and np.ptp(moved, axis=(1, 2)).max() < 1e-4


def test_patches_tell_the_colours_they_come_from():
    torch.manual_seed(0)
    geometry = PixelGeometry(
        image_size=64, num_queries=6, semantic_queries=2, qformer_width=32, qformer_depth=2, qformer_heads=4, qformer_mlp=64,
        codebook_size=16, decoder_depth=1, decoder_heads=4, output_size=16, pixel_grid=4, pixel_channels=(16,),
    )  # fmt: skip
    model = PixelTokenizer(geometry).eval()
    rng = np.random.default_rng(0)
    samples = [Sample(str(i), label="thing") for i in range(300)]
    features = rng.normal(size=(300 * VIEWS, 4, 1120)).astype(np.float16)
    shades = rng.normal(size=(300 * VIEWS, 4, 3, 1)).repeat(64, -1) + 0.1 * rng.normal(
        size=(300 * VIEWS, 4, 3, 64)
    )
    features[..., -192:] = shades.reshape(
        300 * VIEWS, 4, 192
    )  # each token's square has one colour, and some noise
    samples = [dataclasses.replace(s, held_out=i >= 250) for i, s in enumerate(samples)]
    cache = Cache(samples, features, np.zeros((300 * VIEWS, 16, 16, 3), np.uint8))
    fit_patches(model, cache)
    unseen = torch.from_numpy(features[500:].astype(np.float32))
    with torch.no_grad():
        seen = patches_of(unseen, geometry).flatten(2)
        vectors = model.query_features(unseen)[:, 2:]
        back = (vectors - model.patches.bias) @ torch.linalg.pinv(model.patches.weight).T
    assert vectors.std() == pytest.approx(1, abs=0.3) and vectors.mean().abs() < 0.2
    assert (back - seen).square().mean() < 0.05 * seen.var()
