import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageDraw

from seed_edge.data.phrasing import COLOURS
from seed_edge.data.webdataset import read_shard
from seed_edge.emoji.colours import HUES, SHADES, colour_word, dominant_hue, recolour
from seed_edge.emoji.composites import make_composites
from seed_edge.emoji.drawings import write_drawings
from seed_edge.emoji.packages import NAMES, SIZE, SOURCES, Drawing, find_package, slug
from seed_edge.errors import DataError


def test_every_colour_word_has_a_hue_or_a_shade():
    assert (*HUES, *SHADES) == COLOURS


def disc(colour):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=colour)
    return image


def encoded(image, kind="WEBP"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_the_dominant_colour_is_named_and_can_be_changed():
    red = disc((200, 30, 20, 255))
    hue = dominant_hue(red)
    assert hue is not None and colour_word(hue) == "red"
    blue = recolour(red, hue, "blue")
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
    icons = {
        "icons": {"red-apple": {"body": '<circle cx="16" cy="16" r="12" fill="#d02010"/>'}},
        "width": 32,
        "height": 32,
    }
    for source in SOURCES:
        if source.style == "fluent-3d":
            pack(source.package, "1.1.0", {"assets/1f34e.webp": encoded(disc((210, 30, 20, 255)))})
        else:
            pack(source.package, "1.0.0", {"icons.json": json.dumps(icons).encode()})
    count = write_drawings(tmp_path, tmp_path / "drawings.tar", recolours=2, composites=20)
    every = [json.loads(files["json"]) for _, files in read_shard(tmp_path / "drawings.tar")]
    records = [r for r in every if "phrases" not in r]
    assert count == len(every) == len(records) + 20
    assert (
        len(records) == len(SOURCES) * 2 - 1 + 1
    )  # one other colour, two in the canonical style, none held out
    assert {r["label"] for r in records} == {"red apple"} and records[0]["synonyms"] == ["apple"]
    assert sum(r["held_out"] for r in records) == 1
    assert {r["colour"] for r in records if not r.get("recoloured")} == {"red"}
    assert "red" not in {r["colour"] for r in records if r.get("recoloured")}
    more = write_drawings(tmp_path, tmp_path / "more.tar", recolours=2, composites=20, seed=1, only_made=True)
    made = [json.loads(files["json"]) for _, files in read_shard(tmp_path / "more.tar")]
    assert more == len(made) and all("phrases" in each or each["recoloured"] for each in made)
    assert [r for r in records if r.get("recoloured")] == [r for r in made if r.get("recoloured")]
    assert [r for r in every if "phrases" in r] != [r for r in made if "phrases" in r]  # another seed


def test_composites_are_mostly_of_things_that_people_ask_for():
    image = Image.new("RGBA", (SIZE, SIZE))
    labels = ["cat", "dog", *(f"thing{i}" for i in range(18))]
    things = [Drawing(n, image, {"label": n, "style": "noto", "source": "s"}, None) for n in labels]
    keys = [drawing.key.split("-", 2)[2] for drawing in make_composites(things, 400, 0)]
    assert 0.5 < np.mean([key in ("cat", "dog") for key in keys]) < 0.75  # a tenth of all things
    assert len(set(keys)) == 20


def test_composites_show_what_their_words_say():
    """Two discs side by side, one above the other, three of them: counted in the picture."""
    names = {"plum": (150, 20, 160, 255), "lime": (60, 190, 30, 255)}
    things = [
        Drawing(n, disc(c).resize((SIZE, SIZE)), {"label": n, "style": "noto", "source": "s"}, None)
        for n, c in names.items()
    ]
    kinds = set()
    for drawing in make_composites(things, 60, 3):
        kind = drawing.key.split("-")[0]
        kinds.add(kind)
        pixels = np.asarray(drawing.image.convert("RGB"), int)
        seen = {
            n: (np.abs(pixels - np.array(c[:3])).sum(-1) < 30) & (np.asarray(drawing.image)[..., 3] > 200)
            for n, c in names.items()
        }
        for phrase in drawing.record["phrases"]:
            for name in names:
                assert (name in phrase) == bool(seen[name].sum() > 300), (drawing.key, phrase)
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", phrase), phrase  # on an orange background
        first = drawing.record["phrases"][0]
        if kind == "count":
            number = {"two": 2, "three": 3, "four": 4}[first.split()[0]]
            quarters = sum(seen[n].sum() for n in names) / (np.pi * (53 * 24 / 32) ** 2)
            assert round(quarters) == number
        elif kind in ("beside", "above") and seen["plum"].any() and seen["lime"].any():
            axis = 1 if kind == "beside" else 0
            middle = {n: np.argwhere(seen[n])[:, axis].mean() for n in names}
            a, b = ("plum", "lime") if first.index("plum") < first.index("lime") else ("lime", "plum")
            assert middle[a] < middle[b], drawing.key
    assert kinds == {"beside", "above", "count", "ground"}


def test_names_are_slugs():
    assert [slug(n) for n in ("hot dog", "Mrs. Claus", "one o\N{RIGHT SINGLE QUOTATION MARK}clock")] == [
        "hot-dog", "mrs-claus", "one-oclock"
    ]  # fmt: skip
