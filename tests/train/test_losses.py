"""Branches and losses of SEED-2 that only training runs."""

import pytest
import torch
from transformers import BertConfig, BertModel

from seed_edge.models.checkpoints import load_seed_tokenizer
from seed_edge.models.config import SeedGeometry
from seed_edge.train.seed2.losses import ContrastiveQFormer, code_losses

PIECES = 50


@pytest.fixture
def contrastive(maker):
    torch.manual_seed(0)
    return ContrastiveQFormer(SeedGeometry(**maker["GEOMETRIES"]["tiny"]), PIECES)


@pytest.fixture
def trainee(seed2):
    return load_seed_tokenizer(seed2, None, lambda text: None, training=True)


def test_the_text_branch_is_bert(contrastive, maker):
    g = maker["GEOMETRIES"]["tiny"]
    config = BertConfig(
        vocab_size=PIECES, hidden_size=g["qformer_width"], num_hidden_layers=g["qformer_depth"], attn_implementation="eager",
        num_attention_heads=g["qformer_heads"], intermediate_size=g["qformer_mlp"], hidden_act="gelu", layer_norm_eps=1e-12,
    )  # fmt: skip
    bert = BertModel(config, add_pooling_layer=False).eval()
    ours = {name.removeprefix("bert."): value for name, value in contrastive.Qformer.state_dict().items()}
    ours["embeddings.token_type_embeddings.weight"] = torch.zeros(2, g["qformer_width"])
    missing, _ = bert.load_state_dict(ours, strict=False)  # ours has the ways of images besides
    assert not missing
    ids = torch.randint(PIECES, (2, 9))
    present = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    with torch.inference_mode():
        found = contrastive.Qformer.read(ids, present)
        wanted = bert(ids, attention_mask=present).last_hidden_state
    assert torch.allclose(found[0], wanted[0], atol=1e-5) and torch.allclose(
        found[1, :4], wanted[1, :4], atol=1e-5
    )


def test_images_come_near_their_texts(contrastive, maker):
    vision = torch.randn(6, 5, maker["GEOMETRIES"]["tiny"]["vit_width"])
    ids, present = torch.randint(PIECES, (6, 7)), torch.ones(6, 7, dtype=torch.long)
    optimizer = torch.optim.AdamW(contrastive.parameters(), 1e-3)
    losses = []
    for _ in range(40):
        images, texts = contrastive.of_images(vision), contrastive.of_texts(ids, present)
        loss = contrastive.loss(images, texts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert torch.allclose(images.norm(dim=1), torch.ones(6)) and losses[-1] < 0.7 * losses[0]
    assert torch.equal((images @ texts.T).argmax(1), torch.arange(6))
    assert contrastive.temp.item() != pytest.approx(0.07)


def test_the_loss_is_that_of_the_recipe(contrastive):
    """Perfectly told apart, only the smoothed labels are left to pay for."""
    images = torch.eye(4)
    scores = torch.log_softmax(torch.eye(4) / 0.07, 1)
    smoothed = torch.full((4, 4), 0.1 / 4) + 0.9 * torch.eye(4)
    assert contrastive.loss(images, images).item() == pytest.approx(
        -(smoothed * scores).sum(1).mean().item(), rel=1e-5
    )


def test_losses_of_stage_two_train_what_comes_after_the_queries(trainee, maker):
    vision = trainee.vision_tokens(torch.from_numpy(maker["pixel_values"](maker["GEOMETRIES"]["tiny"], 3, 1)))
    embeds = trainee.decode(trainee.quantize_vision(vision).codes).detach()
    losses = code_losses(trainee, vision.detach(), embeds)
    assert (
        losses["image"].item() == pytest.approx(0, abs=1e-6)
        and losses["vq"] > 0
        and 0 < losses["reconstruction"] < 4
    )
    (losses["vq"] + losses["reconstruction"]).backward()
    touched = {
        name.split(".")[0]
        for name, p in trainee.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert touched == {"encode_task_layer", "decode_task_layer", "quantize", "pos_embed", "blocks"}


def test_the_reconstruction_runs_the_same_blocks_as_the_image_branch(trainee):
    """Given the image branch's weights it gives the image branch's features."""
    trainee.blocks.load_state_dict(trainee.blocks_image.state_dict())
    trainee.pos_embed.data.copy_(trainee.pos_embed_image)
    vectors = torch.randn(2, 32, trainee.geometry.code_dim)
    assert torch.equal(trainee.reconstruct(vectors), trainee.code_features(vectors))
