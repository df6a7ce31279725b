import dataclasses
import html
import io
import json
import logging
import struct

import pytest
from PIL import Image, PngImagePlugin

from seed_edge.errors import ImageError
from seed_edge.image_metadata import (
    MAX_JPEG_METADATA,
    XMP_IN_PNG,
    DrawnImage,
    Record,
    is_seed_edge_image,
    read_record,
    record_from_image,
    save_options,
)

KINDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
RECORD = Record("a <red> fox & friends", (DrawnImage(7, (1, 2, 3, 4)),), "mini", "ab" * 32, temperature=0.5)
PICTURE = Image.new("RGB", (16, 16), "red")


def written(path, kind, record):
    PICTURE.save(path, kind, **save_options(kind, record, PICTURE, path.name))
    return path


def noting(text: str) -> Image.Image:
    """A picture with a record of that text."""
    image = Image.new("RGB", (2, 2))
    image.info["xmp"] = f"<seed:record>{html.escape(text)}</seed:record>".encode("utf-8", "surrogatepass")
    return image


def changed(**fields) -> str:
    return json.dumps(dataclasses.asdict(RECORD) | fields)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a fox",
        "日本 é 🦊",
        "x\0y",
        "\x1b[2J\r\n\t\x7f",
        "\ud800 lone",
        "\udcff byte",
        "\u202e turned",
        "]]> <!-- &amp; --> \"'",
        "\ufffe\uffff",
        "<seed:record></seed:record>",
        "long " * 2000,
    ],
)
def test_what_is_written_is_read_back_whatever_the_prompt(prompt, kind, tmp_path):
    record = dataclasses.replace(
        RECORD, prompt=prompt, negative=prompt[::-1], steps=10_000, guidance=-3.5, guided_between=(0.1, 0.9)
    )
    path = written(tmp_path / f"a.{KINDS[kind]}", kind, record)
    assert read_record(path) == record and is_seed_edge_image(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "record",
    [
        dataclasses.replace(RECORD, prompt="é" * 70_000),
        dataclasses.replace(RECORD, prompt="p" * 2_000_000),
        dataclasses.replace(
            RECORD, drawn=tuple(DrawnImage(seed, tuple(range(8000, 8032))) for seed in range(330))
        ),
        dataclasses.replace(
            RECORD, drawn=tuple(DrawnImage(seed, tuple(range(4096))) for seed in range(1000))
        ),
        dataclasses.replace(RECORD, prompt="&" * 12_000),
        dataclasses.replace(RECORD, prompt="\0" * 30_000),
    ],
    ids=["letters", "millions", "a grid", "a large grid", "escapes", "zeros"],
)
def test_what_a_format_has_no_room_for_is_left_out_and_said_and_the_picture_is_kept(
    record, kind, tmp_path, caplog
):
    with caplog.at_level(logging.WARNING, "seed_edge"):
        path = written(tmp_path / f"a.{KINDS[kind]}", kind, record)
    with Image.open(path) as image:
        image.load()
        assert image.size == (16, 16)
    assert is_seed_edge_image(path)
    message = " ".join(entry.getMessage() for entry in caplog.records)
    try:
        assert read_record(path) == record
        assert "without its seed-edge metadata:" not in message
    except ImageError:
        assert f"a.{KINDS[kind]} is saved without its seed-edge metadata: " in message


def test_a_jpeg_has_room_for_a_record_up_to_the_bound(tmp_path, caplog):
    codes = tuple(range(1000, 1032))
    fits = [n for n in (100, 200, 230, 240, 260, 300) if not _left_out(tmp_path, n, codes, caplog)]
    assert fits and fits == [n for n in (100, 200, 230, 240, 260, 300) if n <= max(fits)] and max(fits) < 300
    assert MAX_JPEG_METADATA < 65_502


def _left_out(folder, count, codes, caplog) -> bool:
    caplog.clear()
    record = dataclasses.replace(RECORD, drawn=tuple(DrawnImage(seed, codes) for seed in range(count)))
    path = written(folder / "a.jpg", "JPEG", record)
    if caplog.records:
        return True
    assert read_record(path) == record
    return False


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_the_comment_for_other_programs_is_of_the_standards_type(kind, tmp_path):
    path = written(tmp_path / "a", kind, RECORD)
    with Image.open(path) as image:
        exif = image.info["exif"].removeprefix(b"Exif\0\0")
    assert exif[:4] == b"MM\0*"
    (first,) = struct.unpack_from(">I", exif, 4)
    assert struct.unpack_from(">HHHI", exif, first) == (1, 0x8769, 4, 1)
    (second,) = struct.unpack_from(">I", exif, first + 10)
    entries, tag, kind_, count, place = struct.unpack_from(">HHHII", exif, second)
    assert (entries, tag, kind_) == (1, 0x9286, 7)
    comment = exif[place : place + count]
    assert len(comment) == count and comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be").startswith("a <red> fox & friends\nSteps: 1, ")


@pytest.mark.parametrize("kind", KINDS)
def test_another_program_reads_prompt_and_settings(kind, tmp_path):
    sd_parsers = pytest.importorskip("sd_parsers")
    record = dataclasses.replace(
        RECORD, prompt="a fox, é日本", negative="a cat", steps=25, guidance=3.5, scheduler="pndm"
    )
    message = sd_parsers.ParserManager().parse(written(tmp_path / f"a.{KINDS[kind]}", kind, record))
    assert (message.full_prompt, message.full_negative_prompt) == ("a fox, é日本", "a cat")
    (sampler,) = message.samplers
    assert (
        sampler.parameters == {"cfg_scale": "3.5", "seed": "7", "steps": "25"}
        and sampler.model.name == "mini"
    )


HOSTILE = {
    "deep lists": "[" * 100_000,
    "deep lists that end": "[" * 5000 + "]" * 5000,
    "deep objects": '{"a":' * 5000 + "1" + "}" * 5000,
    "5,000 digits": changed().replace('"seed": 7', '"seed": ' + "9" * 5000),
    "two signs": changed().replace('"seed": 7', '"seed": --5'),
    "a fraction": changed().replace('"seed": 7', '"seed": 7.5'),
    "a negative seed": changed(drawn=[{"seed": -1, "codes": [1]}]),
    "a seed of 64 bits": changed(drawn=[{"seed": 1 << 63, "codes": [1]}]),
    "a negative code": changed(drawn=[{"seed": 1, "codes": [-1]}]),
    "a code of 32 bits": changed(drawn=[{"seed": 1, "codes": [1 << 31]}]),
    "a code that is a word": changed(drawn=[{"seed": 1, "codes": ["1"]}]),
    "a code that is true": changed(drawn=[{"seed": 1, "codes": [True]}]),
    "4,097 codes": changed(drawn=[{"seed": 1, "codes": [1] * 4097}]),
    "1,001 pictures": changed(drawn=[{"seed": 1, "codes": [1]}] * 1001),
    "no picture": changed(drawn=[]),
    "steps 0": changed(steps=0),
    "steps 10,001": changed(steps=10_001),
    "NaN": changed(guidance=float("nan")),
    "infinity": changed(temperature=float("inf")),
    "beyond a number": changed().replace("0.5", "1e999"),
    "a negative temperature": changed(temperature=-0.1),
    "guided beyond": changed(guided_between=[0.1]),
    "guided by a word": changed(guided_between=["a", "b"]),
    "a long name": changed(bundle="x" * 1001),
    "a long hash": changed(bundle_hash="x" * 1001),
    "a prompt that is a number": changed(prompt=1),
    "a key with an escape sequence": changed(**{"\x1b[2J\n": 1}),
    "a key twice": '{"prompt": "a", "prompt": "b"}',
    "a list": "[]",
    "a word": '"record"',
    "null": "null",
    "nothing": "",
    "half": changed()[:60],
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_record_is_refused_in_one_line(text):
    with pytest.raises(ImageError) as caught:
        record_from_image(noting(text), "a\x1b[31m.png")
    message = str(caught.value)
    assert message.startswith("a\\x1b[31m.png: its seed-edge metadata is damaged") and message.isprintable()
    assert len(message) < 500


def test_strings_of_a_record_stay_what_they_are():
    record = record_from_image(noting(changed(prompt="\x1b[2J\n", bundle="\u202e")), "a.png")
    assert (record.prompt, record.bundle) == ("\x1b[2J\n", "\u202e")


@pytest.mark.parametrize("field", [{"seed": -1}, {"seed": 1 << 63}, {"codes": (-1,)}])
def test_what_could_not_be_read_back_is_not_written(field, tmp_path, caplog):
    record = dataclasses.replace(RECORD, drawn=(dataclasses.replace(RECORD.drawn[0], **field),))
    path = written(tmp_path / "a.png", "PNG", record)
    assert is_seed_edge_image(path) and "a.png is saved without its seed-edge metadata" in caplog.text
    with pytest.raises(ImageError, match="has no seed-edge metadata"):
        read_record(path)


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_pictures_are_known_with_a_record_and_without(kind, tmp_path):
    assert is_seed_edge_image(written(tmp_path / "with", kind, RECORD))
    assert is_seed_edge_image(written(tmp_path / "without", kind, None))


def by_another_program() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(
        XMP_IN_PNG, '<x:xmpmeta xmlns:seed="urn:seed-edge:1" x:xmptk="Other 1.0"><rdf:RDF/></x:xmpmeta>'
    )
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def plain() -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        plain(),
        by_another_program(),
        b"",
        b"urn:seed-edge:1",
        plain()[:40],
        b"\x89PNG\r\n\x1a\n" + b"urn:seed-edge:1" * 9,
    ],
    ids=["plain", "saved by another program", "empty", "text", "cut off", "no picture"],
)
def test_what_others_made_is_not_ours(data, tmp_path):
    (tmp_path / "a.png").write_bytes(data)
    assert not is_seed_edge_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["", "a\0b", "nothing", "x" * 300, ".", "/dev/zero"])
def test_asking_for_our_mark_never_raises(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_seed_edge_image(name) is False
