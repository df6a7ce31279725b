import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from seed_edge.errors import DataError
from seed_edge.models.train.drawings import colour_word, dominant_hue, find_package, recoloured, slug
from seed_edge.models.train.loop import Loop, learning_rate, optimizers_for
from seed_edge.models.train.samples import Sample, read_samples, view
from seed_edge.models.train.shards import ShardWriter, read_shard
from seed_edge.models.train.texts import caption, plain, request, with_article
from seed_edge.models.train.tokenizer import WordTargets, words_of


def disc(colour):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=colour)
    return image


def encoded(image, kind="WEBP"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_a_shard_comes_back_and_appears_only_when_complete(tmp_path):
    path = tmp_path / "a.tar"
    with ShardWriter(path) as shard:
        shard.write("one", {"webp": b"1", "json": b"{}"})
        shard.write("two.b", {"webp": b"2"})
        assert not path.exists()
    assert list(read_shard(path)) == [("one", {"webp": b"1", "json": b"{}"}), ("two.b", {"webp": b"2"})]
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "b.tar") as shard:
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_data_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "no.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"no\.tar"):
        read_samples([tmp_path / "no.tar"])
    with pytest.raises(DataError, match=r"missing\.tar"):
        read_samples([tmp_path / "missing.tar"])
    with ShardWriter(tmp_path / "empty.tar"):
        pass
    with pytest.raises(DataError, match="no pictures"):
        read_samples([tmp_path / "empty.tar"])
    with ShardWriter(tmp_path / "bad.tar") as shard:
        shard.write("x", {"webp": encoded(disc("red")), "json": b"{"})
    with pytest.raises(DataError, match=r"x\.json is not JSON"):
        read_samples([tmp_path / "bad.tar"])


def test_validation_pictures_are_kept_out(tmp_path):
    with ShardWriter(tmp_path / "photos-val.tar") as shard:
        shard.write("v", {"webp": encoded(disc("red")), "json": b'{"captions": ["a disc"]}'})
    with ShardWriter(tmp_path / "drawings.tar") as shard:
        for held in (True, False):
            record = {"label": "disc", "style": "flat", "held_out": held}
            shard.write(f"d{held}", {"webp": encoded(disc("red")), "json": json.dumps(record).encode()})
    found = [sample for sample, _ in read_samples([tmp_path / "photos-val.tar", tmp_path / "drawings.tar"])]
    assert [(s.key, s.held_out) for s in found] == [("v", True), ("dTrue", True), ("dFalse", False)]
    labelled = [Sample.from_record(f"photo{i}", {"label": "cup"}, held_out=False) for i in range(2000)]
    assert 0.08 < np.mean([s.held_out for s in labelled]) < 0.12


def test_views_are_square_and_the_first_is_what_the_runtime_sees():
    wide = Image.new("RGB", (80, 40), "red")
    assert view(wide, 32, None).size == (32, 32)
    drawing = view(disc("red"), 32, None)
    assert drawing.getpixel((0, 0)) == (255, 255, 255) and drawing.getpixel((16, 16)) == (255, 0, 0)
    varied = [view(disc("red"), 32, np.random.default_rng(i)) for i in range(8)]
    assert all(v.size == (32, 32) and v.mode == "RGB" for v in varied)
    assert len({v.tobytes() for v in varied}) == 8


def test_the_dominant_colour_is_named_and_can_be_changed():
    red = disc((200, 30, 20, 255))
    hue = dominant_hue(red)
    assert hue is not None and colour_word(hue) == "red"
    blue = recoloured(red, hue, "blue")
    assert colour_word(dominant_hue(blue)) == "blue"
    assert blue.getpixel((0, 0))[3] == 0
    assert dominant_hue(disc((128, 128, 128, 255))) is None
    half = Image.new("RGBA", (64, 64), (200, 30, 20, 255))
    half.paste((20, 40, 200, 255), (0, 0, 32, 64))
    assert dominant_hue(half) is None


def test_packages_are_found_by_their_exact_name(tmp_path):
    for name in ("iconify-json-noto-v1-1.2.5.tgz", "iconify-json-noto-1.2.9.tgz"):
        (tmp_path / name).write_bytes(b"")
    assert find_package(tmp_path, "@iconify-json/noto").name == "iconify-json-noto-1.2.9.tgz"
    assert find_package(tmp_path, "@iconify-json/noto-v1").name == "iconify-json-noto-v1-1.2.5.tgz"
    with pytest.raises(DataError, match="npm pack @iconify-json/fxemoji"):
        find_package(tmp_path, "@iconify-json/fxemoji")


def test_a_package_of_drawings_becomes_samples(tmp_path):
    from seed_edge.models.train.drawings import NAMES, SOURCES, write_drawings

    def pack(package, version, files):
        with tarfile.open(tmp_path / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz", "w:gz") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(f"package/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    emoji = [
        {"label": "red apple", "hexcode": "1F34E", "group": 4, "subgroup": 42, "tags": ["fruit"]},
        {"label": "keycap", "hexcode": "0023", "group": 8, "subgroup": 94},
    ]
    pack(NAMES, "17.0.0", {"en/data.json": json.dumps(emoji).encode()})
    icons = {"icons": {"red-apple": {"body": '<circle cx="16" cy="16" r="12" fill="#d02010"/>'}}, "width": 32, "height": 32}
    for source in SOURCES:
        if source.style == "fluent-3d":
            pack(source.package, "1.1.0", {"assets/1f34e.webp": encoded(disc((210, 30, 20, 255)))})
        else:
            pack(source.package, "1.0.0", {"icons.json": json.dumps(icons).encode()})
    count = write_drawings(tmp_path, tmp_path / "drawings.tar", recolours=2)
    records = [json.loads(files["json"]) for _, files in read_shard(tmp_path / "drawings.tar")]
    assert count == len(records) == len(SOURCES) * 3 - 2  # the held-out style is not recoloured
    assert {r["label"] for r in records} == {"red apple"}
    assert sum(r["held_out"] for r in records) == 1
    assert {r["colour"] for r in records if not r.get("recoloured")} == {"red"}
    assert "red" not in {r["colour"] for r in records if r.get("recoloured")}


def test_names_are_slugs():
    assert [slug(n) for n in ("hot dog", "Mrs. Claus", "one o\N{RIGHT SINGLE QUOTATION MARK}clock")] == [
        "hot-dog", "mrs-claus", "one-oclock"
    ]  # fmt: skip


def test_texts_name_the_thing_and_its_colour():
    rng = np.random.default_rng(0)
    fox = Sample("k", label="fox", style="flat", colour="orange", tags=("animal",))
    blue = Sample("k", label="fox", style="flat", colour="blue", recoloured=True)
    photo = Sample("k", label="cup")
    said = Sample("k", captions=("Two dogs run .",))
    assert all("blue fox" in request(blue, rng) or "blue" in request(blue, rng) for _ in range(20))
    assert {caption(fox, rng) for _ in range(40)} == {"a drawing of a fox", "a drawing of an orange fox"}
    assert caption(photo, rng) == "a photo of a cup"
    assert caption(said, rng) == request(said, rng) == "two dogs run"
    assert caption(Sample("k"), rng) is None and request(Sample("k"), rng) is None
    assert any("animal" in request(fox, rng) for _ in range(100))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fox", "a fox"),
        ("orange", "an orange"),
        ("scissors", "scissors"),
        ("glass", "a glass"),
        ("glass of milk", "a glass of milk"),
        ("milk", "milk"),
        ("red rice", "red rice"),
    ],
)
def test_articles(name, said):
    assert with_article(name) == said


def test_plain_text_is_lower_case_without_a_full_stop():
    assert plain("A dog  runs , and jumps .") == "a dog runs, and jumps"


def test_word_targets_weigh_rare_words_more_and_skip_little_ones():
    samples = [Sample(str(i), captions=("a dog on the grass",)) for i in range(9)] + [
        Sample("x", captions=("a dog and a zebra",))
    ] * 2
    assert "the" not in words_of(samples[0])
    targets = WordTargets(samples, 10)
    row = dict(zip(targets.words, targets([9])[0].tolist(), strict=True))
    assert row["zebra"] > row["dog"] > 0 and row["grass"] == 0
    assert targets([0, 9]).sum(1).tolist() == pytest.approx([1, 1])


def test_the_rate_warms_up_and_falls():
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and max(rates) <= 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(0.05, abs=0.01)


class Regression:
    """A small problem whose batches depend on the step's generator."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self.optimizers = optimizers_for([self.model], 0.01)

    def losses(self, step, rng):
        x = torch.from_numpy(rng.standard_normal((16, 4)).astype(np.float32))
        return {"squared": (self.model(x) - x.sum(1, keepdim=True)).square().mean()}

    def run(self, folder, steps, losses=None, **options):
        loop = Loop(folder, steps, 0, lambda text: None, every=5)
        loop.run({"m": self.model}, self.optimizers, losses or self.losses, 1e-1, 2, save_every=10, **options)
        return torch.cat([p.flatten() for p in self.model.parameters()])


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    whole = Regression().run(tmp_path / "whole", 30)
    broken = Regression()

    def interrupted(step, rng):
        if step == 17:
            raise KeyboardInterrupt
        return broken.losses(step, rng)

    with pytest.raises(KeyboardInterrupt):
        broken.run(tmp_path / "broken", 30, interrupted)
    assert torch.equal(Regression(seed=5).run(tmp_path / "broken", 30), whole)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 30 and lines[-1]["squared"] < lines[0]["squared"]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    problem = Regression()
    losses = lambda step, rng: {"squared": problem.losses(step, rng)["squared"] * (float("nan") if step == 3 else 1)}  # noqa: E731
    with pytest.raises(DataError, match="step 3: the loss is not finite"):
        problem.run(tmp_path, 10, losses)


def test_another_seed_does_not_continue_a_run(tmp_path):
    Regression().run(tmp_path, 10)
    problem = Regression()
    with pytest.raises(DataError, match="--seed 0"):
        Loop(tmp_path, 20, 1, lambda text: None).run({"m": problem.model}, problem.optimizers, problem.losses, 1e-2, 2)


def test_matrices_go_to_muon_and_tables_heads_and_norms_never_decay():
    parts = {"table": torch.nn.Embedding(4, 4), "linear": torch.nn.Linear(4, 4), "norm": torch.nn.LayerNorm(4)}
    parts |= {"conv": torch.nn.Conv2d(2, 2, 3), "head": torch.nn.Linear(4, 9)}
    model = torch.nn.ModuleDict(parts)
    muon, adamw = optimizers_for([model], 0.1, heads=[parts["head"]])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(p)] for g in muon.param_groups for p in g["params"]] == ["linear.weight"]
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in adamw.param_groups)
    assert decayed == {"conv.weight"}
    assert kept == {"table.weight", "linear.bias", "norm.weight", "norm.bias", "conv.bias", "head.weight", "head.bias"}
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.1, 0.0]


def test_a_state_of_a_model_ordered_otherwise_is_refused(tmp_path):
    Regression().run(tmp_path, 10)
    problem = Regression()
    problem.model = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1))
    problem.optimizers = optimizers_for([problem.model], 0.01)
    with pytest.raises(DataError, match="ordered otherwise"):
        problem.run(tmp_path, 20)
