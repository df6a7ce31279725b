"""SEED-2's own recipes on the tiny geometry: real steps, falling losses, and what comes out can be exported."""

import json

import numpy as np
import pytest
import torch
from helpers import call
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from seed_edge.train.seed2.stages import cleaned, cropped

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "blue", "white", "square")
COLOURS = {"red": (220, 40, 30), "green": (40, 200, 60), "blue": (40, 60, 220), "white": (240, 240, 240)}


def losses_of(folder, name):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines]


@pytest.fixture(scope="module")
def files(tmp_path_factory, maker):
    """Pictures of four colours with captions, word pieces, a trunk and a CLIP of the tiny geometry."""
    folder = tmp_path_factory.mktemp("seed2")
    (folder / "pictures").mkdir()
    rng, lines = np.random.default_rng(0), []
    for number in range(24):
        name = list(COLOURS)[number % 4]
        noise = rng.integers(-15, 16, (40, 48, 3))
        Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)).save(
            folder / "pictures" / f"{number}.png"
        )
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"A {name} square."}))
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    geometry = maker["GEOMETRIES"]["tiny"]
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=geometry["image_size"],
        patch_size=14, projection_dim=geometry["image_embed_dim"],
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def stages(files, seed2, maker):
    geometry = [f"--set=geometry.{name}={value}" for name, value in maker["GEOMETRIES"]["tiny"].items()]
    shared = [
        "--data",
        files / "pictures",
        "--vit",
        seed2 / "eva_vit_g.pth",
        *geometry,
        "--set=schedule.log_every=5",
    ]
    fast = [
        "--set=schedule.steps=40",
        "--set=schedule.batch_size=8",
        "--set=schedule.warmup_steps=4",
        "--set=schedule.learning_rate=2e-3",
    ]
    one, two = files / "one", files / "two"
    call(
        "train",
        "tokenizer",
        "--recipe",
        "seed2-stage1",
        "--bert-vocab",
        files / "vocab.txt",
        "--out",
        one,
        *shared,
        *fast,
    )
    call(
        "train",
        "tokenizer",
        "--recipe",
        "seed2-stage2",
        "--clip",
        files / "clip",
        "--start",
        one,
        "--out",
        two,
        *shared,
        *fast,
    )
    return one, two


def test_both_stages_learn(stages):
    one, two = stages
    contrastive = losses_of(one, "contrastive")
    assert contrastive[-1] < 0.8 * contrastive[0]
    for name in ("vq", "image", "reconstruction"):
        assert np.isfinite(losses_of(two, name)).all()
    for name in ("image", "reconstruction"):
        assert losses_of(two, name)[-1] < 0.8 * losses_of(two, name)[0], name


def test_stage_two_leaves_what_stage_one_learnt(stages):
    from safetensors.torch import load_file

    first, second = (
        load_file(stages[0] / "contrastive.safetensors"),
        load_file(stages[1] / "seed_quantizer.safetensors"),
    )
    shared = [name for name in second if name.startswith(("Qformer.", "ln_vision.", "query_tokens"))]
    assert shared and all(torch.equal(first[name], second[name]) for name in shared)
    assert not any(name.startswith("visual_encoder.") for name in second)


def test_what_comes_out_is_exported_exactly(stages, seed2, tmp_path):
    result = call(
        "export",
        "--ckpt",
        stages[1],
        "--vit",
        seed2 / "eva_vit_g.pth",
        "--image-weights",
        "fp32",
        "--out",
        tmp_path / "b",
    )
    assert "100.0% of codes equal" in result.stderr


@pytest.mark.parametrize(
    ("recipe", "options", "says"),
    [
        ("seed2-stage1", (), "needs --vit and --bert-vocab"),
        ("seed2-stage2", ("--vit", "x"), "needs --clip and --start"),
        ("mini-tokenizer", ("--vit", "x"), "does not use --vit"),
        ("seed2-stage1", ("--vit", "x", "--bert-vocab", "missing.txt"), "missing.txt is missing"),
    ],
)
def test_a_file_that_is_missing_is_named(files, tmp_path, recipe, options, says):
    arguments = [
        "train",
        "tokenizer",
        "--recipe",
        recipe,
        "--data",
        files / "pictures",
        "--out",
        tmp_path / "o",
        *options,
    ]
    result = call(*arguments, fails=True)
    assert says in result.stderr


def test_captions_are_cleaned_as_blip_does():
    assert cleaned("A dog's ball: (red), here!") == "a dog's ball red here"


def test_crops_keep_their_share_and_stay_inside():
    image = Image.new("RGB", (100, 60))
    sizes = [cropped(image, 0.5, np.random.default_rng(seed)).size for seed in range(50)]
    assert all(w <= 100 and h <= 60 for w, h in sizes) and len(set(sizes)) > 20
    assert min(w * h for w, h in sizes) > 0.4 * 6000
