import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from seed_edge.errors import CheckpointError
from seed_edge.models.checkpoints import IMAGE_TOKENIZER_FILE, load_image_tokenizer, save_image_tokenizer
from seed_edge.models.config import COLOUR_SIDE, PixelGeometry, rows_and_columns
from seed_edge.models.efficientnet import TAPS, EfficientNetLite, fold_published_weights, pretrained_trunk
from seed_edge.models.image_tokenizer import PixelTokenizer, patches_of
from seed_edge.models.quantizer import VectorQuantizer

SMALL = PixelGeometry(
    image_size=64, num_queries=4, semantic_queries=2, qformer_width=32, qformer_depth=2, qformer_heads=4, qformer_mlp=64, codebook_size=16,
    code_dim=8, decoder_depth=1, decoder_heads=4, output_size=16, pixel_grid=4, pixel_channels=(16,), memory_width=32, memory_channels=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PixelTokenizer(SMALL).eval()


def test_codes_and_pixels_have_the_declared_shapes_and_ranges(model):
    codes = model.encode(torch.randn(3, 3, 64, 64))
    assert codes.shape == (3, 4) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 16
    pixels = model.decode(codes)
    assert pixels.shape == (3, 3, 16, 16) and pixels.min() >= 0 and pixels.max() <= 1


def test_looking_codes_up_equals_the_training_path(model):
    vision = torch.randn(2, 4, SMALL.vit_width)
    quantized = model.quantize_vision(vision)
    assert torch.equal(quantized.codes, model.quantize.codes(model.query_features(vision)))
    assert torch.allclose(quantized.vectors, model.quantize.embedding(quantized.codes), atol=1e-6)


def test_a_semantic_query_sees_only_those_before_it(model):
    vision = torch.randn(1, 4, SMALL.vit_width)
    with torch.no_grad():
        before = model.query_features(vision)
        changed = model.query_tokens.clone()
        model.query_tokens[:, 1] = torch.randn(SMALL.qformer_width)
        after = model.query_features(vision)
        model.query_tokens.copy_(changed)
    assert torch.allclose(before[:, :1], after[:, :1], atol=1e-5)
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)


def test_a_query_with_a_place_sees_its_own_cell_and_paints_there():
    geometry = dataclasses.replace(SMALL, image_size=224, num_queries=18)
    fresh = PixelTokenizer(geometry).eval()
    picture = torch.zeros(1, 3, 224, 224)
    picture[:, 1, 56:112, 168:] = 1  # second row, last column of 4 x 4
    with torch.no_grad():
        tokens = fresh.vision_tokens(picture)
        patches = patches_of(tokens, geometry)
        vectors = fresh.query_features(tokens)[0, 2:]
    assert patches.shape == (1, 16, *geometry.patch) == (1, 16, 3, 14, 14)
    assert patches[0, 7, 1].eq(1).all() and not patches[0, 7, [0, 2]].any()
    assert patches.sum() == 14 * 14
    assert [i for i in range(16) if not torch.allclose(vectors[i], fresh.patches.bias)] == [7]
    painted = fresh.pixel_head.spread.weight  # (grid^2, queries)
    assert painted.argmax(1).view(4, 4)[1, 3] == 2 + 7 and not painted[:, :2].any()


def test_a_pictures_memory_depends_on_all_its_codes(model):
    vectors = torch.randn(1, 4, 8)
    with torch.no_grad():
        pictures = [model.decode_vectors(vectors)]
        for query in range(4):
            other = vectors.clone()
            other[:, query] += 1
            pictures.append(model.pixel_head(model.code_features(vectors), other))
    assert all(not torch.allclose(pictures[0], other) for other in pictures[1:])


@pytest.mark.parametrize(("count", "grid"), [(32, (8, 4)), (16, (4, 4)), (7, (7, 1)), (1, (1, 1))])
def test_queries_are_laid_out_as_the_squarest_grid(count, grid):
    assert rows_and_columns(count) == grid


def test_tokens_carry_the_colours_of_their_own_square():
    trunk, picture = EfficientNetLite(), torch.zeros(1, 3, 64, 64)
    picture[0, 0, :32, 32:] = 1.0
    colours = trunk(picture)[0, :, -3 * COLOUR_SIDE**2 :].view(4, 3, -1)
    assert torch.equal(colours[:, 0].mean(-1), torch.tensor([0.0, 1, 0, 0])) and not colours[:, 1:].any()


def test_the_nearest_row_wins():
    quantizer = VectorQuantizer(4, 2)
    quantizer.embedding.weight.data = torch.tensor([[0.0, 0], [1, 0], [0, 1], [5, 5]])
    z = torch.tensor([[[0.9, 0.2], [0.1, 0.0], [9, 9], [0.2, 0.7]]])
    assert quantizer.codes(z).tolist() == [[1, 0, 3, 2]]


def test_the_gradient_passes_straight_through_and_both_sides_are_pulled():
    quantizer = VectorQuantizer(4, 2)
    z = torch.randn(1, 3, 2, requires_grad=True)
    quantized = quantizer(z)
    quantized.vectors.sum().backward(retain_graph=True)
    assert torch.equal(z.grad, torch.ones_like(z))
    quantized.loss.backward()
    assert quantizer.embedding.weight.grad.abs().sum() > 0


def test_unused_rows_move_to_where_vectors_are_and_used_ones_stay():
    quantizer = VectorQuantizer(4, 2)
    kept = quantizer.embedding.weight[1].clone()
    usage = torch.tensor([0.0, 8.0, 0.0, 0.0])
    z = torch.full((5, 2), 3.0)
    assert quantizer.revive(usage, z, 0.1) == 3
    assert torch.equal(quantizer.embedding.weight[1], kept)
    assert torch.equal(quantizer.embedding.weight[[0, 2, 3]], torch.full((3, 2), 3.0))
    assert usage.tolist() == [2.0, 8.0, 2.0, 2.0]


def test_one_batch_can_be_learnt(model):
    torch.manual_seed(0)
    learner = PixelTokenizer(SMALL)
    vision, truth = torch.randn(4, 4, SMALL.vit_width), torch.rand(4, 3, 16, 16)
    optimizer = torch.optim.AdamW(learner.parameters(), 2e-3)
    losses = []
    for _ in range(200):
        quantized = learner.quantize_vision(vision)
        loss = (learner.decode_vectors(quantized.vectors) - truth).abs().mean() + quantized.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_published_weights_fold_to_the_network_with_batch_norms():
    """Against convolution then batch norm, on the stem and the first block's depthwise convolution."""
    torch.manual_seed(0)
    trunk = EfficientNetLite()
    published = {}
    names = [("_conv_stem", "_bn0", trunk.stem)]
    for i, block in enumerate(trunk.blocks):
        if block.expand is not None:
            names.append((f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", block.expand))
        names.append((f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", block.depthwise))
        names.append((f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", block.project))
    norms = {}
    for conv, norm, ours in names:
        published[f"{conv}.weight"] = torch.randn_like(ours.weight)
        norms[conv] = torch.nn.BatchNorm2d(ours.out_channels, eps=1e-3).eval()
        for name, tensor in norms[conv].state_dict().items():
            if tensor.ndim:
                tensor.copy_(torch.rand_like(tensor) + 0.5)
                published[f"{norm}.{name}"] = tensor
    trunk.load_state_dict(fold_published_weights(published))
    x = torch.randn(1, 3, 33, 33)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    expected = norms["_conv_stem"](
        torch.nn.functional.conv2d(padded, published["_conv_stem.weight"], stride=2)
    )
    assert torch.allclose(trunk.stem(x), expected, atol=1e-3)
    del published["_blocks.3._bn1.running_var"]
    with pytest.raises(CheckpointError, match=r"_blocks\.3\._bn1\.running_var"):
        fold_published_weights(published)


def test_padding_is_tensorflows():
    """An even side with stride 2 is padded at the right and the bottom only."""
    stem = EfficientNetLite().stem
    x = torch.zeros(1, 3, 4, 4)
    x[..., 0, 0] = 1
    stem.weight.data.zero_()
    stem.weight.data[:, 0, 0, 0] = 1
    stem.bias.data.zero_()
    assert stem(x)[0, 0].tolist() == [[1, 0], [0, 0]]


def test_the_pretrained_trunk_tells_pictures_apart_and_is_frozen():
    trunk = pretrained_trunk()
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    tokens = trunk(torch.randn(2, 3, 64, 64))
    assert tokens.shape == (2, 4, SMALL.vit_width)
    assert [tap.shape[1] for tap in trunk.taps(torch.zeros(1, 3, 64, 64))] == [40, 112, 320] and len(
        TAPS
    ) == 3
    assert not torch.allclose(tokens[0], tokens[1], atol=0.1)


@pytest.fixture
def checkpoint(model, tmp_path):
    save_image_tokenizer(model, tmp_path)
    return tmp_path


def test_a_checkpoint_comes_back_as_it_was(model, checkpoint):
    loaded = load_image_tokenizer(checkpoint)
    assert loaded.geometry == SMALL
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def change(folder, edit):
    state = load_file(folder / IMAGE_TOKENIZER_FILE)
    edit(state)
    save_file(state, folder / IMAGE_TOKENIZER_FILE)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.pop("ln_vision.weight"), "ln_vision.weight is missing"),
        (lambda s: s.update({"query_tokens": torch.zeros(1, 5, 32)}), r"query_tokens has shape \(1, 5, 32\)"),
        (lambda s: s.update({"extra": torch.zeros(1)}), "first extra"),
    ],
)
def test_a_tensor_missing_misshapen_or_surplus_is_named(checkpoint, edit, words):
    change(checkpoint, edit)
    with pytest.raises(CheckpointError, match=words):
        load_image_tokenizer(checkpoint)


def test_a_checkpoint_missing_or_truncated_is_named(checkpoint):
    path = checkpoint / IMAGE_TOKENIZER_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_image_tokenizer(checkpoint)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"image_tokenizer\.safetensors is missing"):
        load_image_tokenizer(checkpoint)
    (checkpoint / "geometry.json").unlink()
    with pytest.raises(CheckpointError, match=r"geometry\.json is missing"):
        load_image_tokenizer(checkpoint)


def test_a_geometry_that_does_not_add_up_is_refused():
    with pytest.raises(CheckpointError, match="doublings"):
        dataclasses.replace(SMALL, output_size=48)
    with pytest.raises(CheckpointError, match="semantic_queries is 0; it must be at least 1"):
        dataclasses.replace(SMALL, semantic_queries=0)
    with pytest.raises(CheckpointError, match="a grid of 3 x 1 queries does not divide"):
        dataclasses.replace(SMALL, num_queries=5)
