import numpy as np
import pytest
import torch

from seed_edge.errors import CheckpointError
from seed_edge.models.config import PixelGeometry
from seed_edge.models.image_tokenizer import PixelTokenizer
from seed_edge.models.quantizer import VectorQuantizer
from seed_edge.train.pixel.codebook import CodebookRecipe, k_means, refitted

SMALL = {
    "image_size": 64, "num_queries": 4, "semantic_queries": 2, "qformer_width": 32, "qformer_depth": 2, "qformer_heads": 4,
    "qformer_mlp": 64, "codebook_size": 16, "code_dim": 8, "decoder_depth": 1, "decoder_heads": 4, "output_size": 16,
    "pixel_grid": 4, "pixel_channels": (16,), "memory_width": 32, "memory_channels": 4,
}  # fmt: skip


def test_rows_lie_where_vectors_are():
    generator = torch.Generator().manual_seed(0)
    places = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [9.0, 9.0]])
    vectors = (places.repeat(50, 1) + 0.1 * torch.randn(200, 2, generator=generator))[
        torch.randperm(200, generator=generator)
    ]
    rows = k_means(vectors, 4, generator)
    assert torch.cdist(places, rows).min(1).values.max() < 0.1
    assert k_means(vectors[:3], 8, generator).shape == (8, 2)  # fewer vectors than rows


def test_queries_with_rows_of_their_own_take_no_other():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 3, own_rows=(2, 4))
    quantizer.embedding.weight.data = torch.randn(16, 3)
    z = torch.randn(50, 5, 3)
    codes, rows = quantizer.codes(z), quantizer.embedding.weight
    ranges = [(0, 4), (4, 8), (8, 16), (8, 16), (8, 16)]
    for query, (first, end) in enumerate(ranges):
        nearest = torch.cdist(z[:, query], rows[first:end]).argmin(1) + first
        assert torch.equal(codes[:, query], nearest)
    assert torch.equal(quantizer.codes(z[:, :2]), codes[:, :2]) and torch.equal(
        quantizer.codes(z[:, :1]), codes[:, :1]
    )
    shared = VectorQuantizer(16, 3)
    shared.embedding.weight.data = rows.data
    assert torch.equal(shared.codes(z), torch.cdist(z, rows[None]).argmin(2))


def test_a_refitted_tokenizer_has_the_same_encoder_and_nearer_rows():
    torch.manual_seed(0)
    model = PixelTokenizer(PixelGeometry(**SMALL)).eval()
    tokens = torch.randn(300, 4, 1120)
    with torch.inference_mode():
        vectors = model.query_features(tokens)
        other = refitted(
            model, vectors.numpy(), CodebookRecipe(rows_per_semantic_query=8, shared_rows=16), seed=0
        ).eval()
        mine, theirs = model.state_dict(), other.state_dict()
        assert all(
            torch.equal(mine[name], theirs[name]) for name in mine if name != "quantize.embedding.weight"
        )
        assert torch.allclose(other.query_features(tokens), vectors, atol=1e-5)
        codes = other.quantize.codes(vectors)
        assert other.geometry.codebook_size == 32 and other.geometry.semantic_rows == 8
        assert set(np.unique(codes[:, 1])) <= set(range(8, 16)) and codes[:, 2:].min() >= 16

        def miss(tokenizer):
            return (tokenizer.quantize.embedding(tokenizer.quantize.codes(vectors)) - vectors).square().mean()

        assert miss(other) < 0.8 * miss(model)


def test_own_rows_have_to_leave_some_to_the_others():
    with pytest.raises(CheckpointError, match="leave none of 16"):
        PixelGeometry(**SMALL, semantic_rows=8)
