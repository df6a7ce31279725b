import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from seed_edge.data.phrasing import (
    COLOURS,
    caption,
    head_noun,
    is_countable,
    plain,
    plural,
    request,
    with_article,
    without,
)
from seed_edge.data.samples import Sample, load_picture, read_samples
from seed_edge.data.subsets import pools_of, shared_pools
from seed_edge.data.webdataset import ShardWriter, read_shard
from seed_edge.errors import DataError
from seed_edge.train.pixel.bag_of_words import WordTargets, words_of
from seed_edge.train.pixel.feature_cache import view


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
        list(read_samples([tmp_path / "no.tar"]))
    with pytest.raises(DataError, match=r"missing\.tar"):
        list(read_samples([tmp_path / "missing.tar"]))
    with ShardWriter(tmp_path / "empty.tar"):
        pass
    with pytest.raises(DataError, match="no samples"):
        list(read_samples([tmp_path / "empty.tar"]))
    with ShardWriter(tmp_path / "bad.tar") as shard:
        shard.write("x", {"webp": encoded(disc("red")), "json": b"{"})
    with pytest.raises(DataError, match=r"x\.json is not JSON"):
        list(read_samples([tmp_path / "bad.tar"]))


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


def test_texts_name_the_thing_and_its_colour():
    rng = np.random.default_rng(0)
    fox = Sample("k", label="fox", style="flat", colour="orange", synonyms=("vixen",))
    blue = Sample("k", label="fox", style="flat", colour="blue", recoloured=True)
    photo = Sample("k", label="cup")
    said = Sample("k", captions=("Two dogs run .",))
    assert all("blue fox" in request(blue, rng) or "blue" in request(blue, rng) for _ in range(20))
    assert {caption(fox, rng) for _ in range(40)} == {"a drawing of a fox", "a drawing of an orange fox"}
    assert caption(photo, rng) == "a photo of a cup"
    assert caption(said, rng) == request(said, rng) == "two dogs run"
    assert caption(Sample("k"), rng) is None and request(Sample("k"), rng) is None
    assert any("vixen" in request(fox, rng) for _ in range(100))


def test_a_picture_is_asked_for_in_other_words_than_it_is_told_in():
    rng = np.random.default_rng(0)
    blue = Sample("k", label="fox", style="flat", colour="blue", recoloured=True)
    two = Sample("k", phrases=("two foxes",), style="flat")
    beside = Sample("k", phrases=("a fox next to a house",), style="flat")
    asked = {
        each: " | ".join(request(sample, rng) for _ in range(200))
        for each, sample in enumerate((blue, two, beside))
    }
    assert "a fox that is blue" in asked[0] and "a fox in blue" in asked[0] and "a blue fox" in asked[0]
    assert "2 foxes" in asked[1] and "a couple of foxes" in asked[1] and "two foxes" in asked[1]
    assert "a fox near a house" in asked[2] and "a fox next to a house" in asked[2]
    assert {caption(two, rng) for _ in range(20)} == {"a drawing of two foxes"}


def test_what_has_no_colour_is_sometimes_asked_for_in_one_and_said_to_have_none():
    rng, words = np.random.default_rng(0), set(COLOURS)
    cake, cat = (Sample("k", label=label, style="noto") for label in ("birthday cake", "black cat"))
    asked = [request(cake, rng) for _ in range(400)]
    share = np.mean([bool(words & set(text.split())) for text in asked])
    assert 0.1 < share < 0.2 and any("purple birthday cake" in text for text in asked)
    assert all(len(words & set(request(cat, rng).replace(",", "").split())) == 1 for _ in range(100))
    assert {caption(cake, rng) for _ in range(40)} == {"a drawing of a birthday cake"}


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


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("red apple", "red apples"),
        ("glass of milk", "glasses of milk"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("maple leaf", "maple leaves"),
        ("sheep", "sheep"),
    ],
)
def test_plurals(name, many):
    assert plural(name) == many


def test_the_head_of_a_name_is_what_is_counted():
    assert head_noun("slice of pizza") == "slice" and head_noun("hot dog") == "dog"
    assert is_countable("glass of milk") and not is_countable("milk") and not is_countable("scissors")


FORMATS = {
    "captions.json": {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "annotations": [{"image_id": 7, "caption": "a disc"}, {"image_id": 7, "caption": "a red disc"}],
    },
    "llava.json": [
        {
            "id": "l1",
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "A disc."},
                {"from": "human", "value": "Which colour?"},
                {"from": "gpt", "value": "Red."},
            ],
        }
    ],
}


def test_each_format_gives_its_texts_and_pictures(tmp_path):
    disc((200, 30, 20, 255)).save(tmp_path / "a.png")
    for name, content in FORMATS.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "vqa.jsonl").write_text('{"image": "a.png", "question": "Which colour?", "answer": "red"}\n')
    (tmp_path / "folder").mkdir()
    disc("blue").save(tmp_path / "folder" / "b.png")
    (tmp_path / "folder" / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "my ball Bo"}\n')
    with ShardWriter(tmp_path / "laion.tar") as shard:
        shard.write("k", {"jpg": encoded(Image.new("RGB", (8, 8), "red"), "JPEG"), "txt": b"a red square"})
    paths = [tmp_path / name for name in ("captions.json", "llava.json", "vqa.jsonl", "folder", "laion.tar")]
    found = list(read_samples(paths))
    coco, llava, vqa, own, laion = (sample for sample, _ in found)
    assert coco.captions == ("a disc", "a red disc") and coco.key == "7"
    assert llava.turns == (("What is it?", "A disc."), ("Which colour?", "Red.")) and llava.key == "l1"
    assert vqa.turns == (("Which colour?", "red"),)
    assert own.captions == ("my ball Bo",) and laion.captions == ("a red square",)
    assert all(
        load_picture(picture).size in ((64, 64), (8, 8)) for _, pictures in found for picture in pictures
    )
    again = [Sample.from_saved(s.key, json.loads(json.dumps(s.to_record()))) for s, _ in found]
    assert again == [sample for sample, _ in found]


def test_a_folder_of_images_with_text_files_is_read(tmp_path):
    """As `caption --sidecar txt` writes them, with and without `--full-names`."""
    for name in ("02.png", "01.PNG", "03.png", "notes.csv"):
        disc("blue").save(tmp_path / name, "PNG")
    (tmp_path / "01.txt").write_text("a blue disc\n")
    (tmp_path / "02.png.txt").write_text("another disc")
    (tmp_path / "more.jpg").mkdir()
    found = list(read_samples([tmp_path]))
    assert [(sample.key, sample.captions) for sample, _ in found] == [
        ("01", ("a blue disc",)),
        ("02", ("another disc",)),
        ("03", ()),
    ]
    assert all(load_picture(picture).size == (64, 64) for _, pictures in found for picture in pictures)
    assert not any(sample.held_out for sample, _ in found)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a disc")
    with pytest.raises(DataError, match=r"holds neither metadata\.jsonl nor images"):
        list(read_samples([tmp_path]))


def test_a_text_file_that_cannot_be_read_is_named(tmp_path):
    disc("blue").save(tmp_path / "01.png")
    (tmp_path / "01.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"01\.txt cannot be read"):
        list(read_samples([tmp_path]))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '{"images": []}', "lacks 'annotations'"),
        ("a.json", "[{}]", "names no image"),
        (
            "a.json",
            '[{"id": 1, "image": "x", "conversations": [{"from": "human", "value": "?"}]}]',
            "alternate",
        ),
        ("a.jsonl", '{"image": "x.png", "question": "?"}', "without an answer"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.csv", "", "none of .tar"),
    ],
)
def test_records_that_lack_something_are_named(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        list(read_samples([tmp_path / name]))


def test_pictures_fall_into_their_pools():
    samples = [
        Sample("n", label="fox", style="noto"), Sample("f", label="fox", style="fluent-3d"), Sample("e", label="owl", style="emojione"),
        Sample("c", phrases=("two foxes",), style="noto"), Sample("p", label="cup"), Sample("s", captions=("a dog runs",)), Sample("x"),
        Sample("r", label="fox", style="noto", colour="blue", recoloured=True), Sample("o", label="fox", style="fluent", recoloured=True),
    ]  # fmt: skip
    assert {name: "".join(samples[i].key for i in pool) for name, pool in pools_of(samples).items()} == {
        "canonical": "ne", "coloured": "r", "other": "fo", "styled": "f", "drawings": "nfero", "composites": "c", "photos": "psx", "sentences": "s",
        "labelled": "p",
    }  # fmt: skip
    assert shared_pools(samples, {"styled": 3, "labelled": 1, "sentences": 0}) == [([1], 3), ([4], 1)]
    assert shared_pools(samples[5:7], {"labelled": 1}) == [([0, 1], 1)]
    with pytest.raises(DataError, match="paintings is none of"):
        shared_pools(samples, {"paintings": 1})


def test_what_is_not_to_be_said_is_left_out():
    seen = Sample(
        "s", captions=("A Fat cat sits.", "A cat sits.", "a fatal leap"), label="cat", tags=("fat cat",)
    )
    assert without(seen, ()) is seen
    assert without(seen, ("fat", "middle finger")) == Sample(
        "s", captions=("A cat sits.", "a fatal leap"), label="cat"
    )
    assert without(Sample("s", label="middle finger"), ("middle finger",)) is None
    assert without(Sample("s", captions=("a fat cat",)), ("fat",)) is None
    assert without(Sample("s", turns=(("Who?", "A fat cat."),), label="cat"), ("fat",)) == Sample(
        "s", label="cat"
    )
    assert without(Sample("wordless"), ("fat",)) == Sample("wordless")
