import contextlib
import io
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from odd_images import corpus, flag, png, saved
from PIL import Image, ImageCms

from seed_edge import image_files, native, preprocess
from seed_edge.data.samples import load_picture
from seed_edge.errors import ImageError
from seed_edge.image_decoding import exif_orientation
from seed_edge.image_files import can_read_format, open_image_file
from seed_edge.image_formats import IMAGE_EXTENSIONS, detect_format
from seed_edge.image_metadata import is_seed_edge_image, read_record
from seed_edge.preprocess import Preprocessing, open_image

FILES = corpus()
COLUMNS, ROWS = 48, 32
ROW, COLUMN = np.mgrid[:ROWS, :COLUMNS]
SLOPES = np.stack([COLUMN * 5, ROW * 8, (ROW + COLUMN) * 3], -1).astype(np.uint8)


@pytest.fixture
def soon():
    """Fails instead of waiting for ever."""

    def fail(*_):
        raise TimeoutError("waited for what is no regular file")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def outcome(data: bytes, max_pixels: int = 200_000_000):
    """Pixels of a file, or what is said of it."""
    try:
        image = open_image(io.BytesIO(data), max_pixels)
    except ImageError as error:
        return str(error)
    return image.size, image.tobytes()


# ---- nothing of the host's


def test_threads_that_open_pictures_touch_no_global_of_pillow_or_warnings(tmp_path):
    names = [
        "rgb.png",
        "cmyk.jpg",
        "pages.tif",
        "plain.gif",
        "plain.webp",
        "broken-exif.jpg",
        "rgb.bmp",
        "half.png",
    ]
    for name in names:
        (tmp_path / name).write_bytes(FILES[name][0])
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters), warnings.showwarning, np.geterr())
    seen, stop = set(), threading.Event()

    def watch():
        while not stop.is_set():
            seen.add(
                (Image.MAX_IMAGE_PIXELS, len(warnings.filters), id(warnings.filters), warnings.showwarning)
            )

    def work(which: int):
        for number in range(600):
            path = tmp_path / names[(which + number) % len(names)]
            for read in (open_image, read_record, load_picture):
                with contextlib.suppress(ImageError):
                    read(path)

    seen.add((Image.MAX_IMAGE_PIXELS, len(warnings.filters), id(warnings.filters), warnings.showwarning))
    watcher = threading.Thread(target=watch)
    workers = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    watcher.start()
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    watcher.join()
    assert len(seen) == 1
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters), warnings.showwarning, np.geterr()) == before


@pytest.mark.parametrize("limit", [None, 1, 0, 10**12])
def test_pillows_limit_of_a_host_program_decides_nothing(limit, monkeypatch):
    wanted = {name: outcome(data) for name, (data, _) in FILES.items()}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert {name: outcome(data) for name, (data, _) in FILES.items()} == wanted
    views = Preprocessing(8, "bicubic", (0.5,) * 3, (0.5,) * 3).views(flag(), 4)
    assert views.shape == (4, 3, 8, 8) and limit == Image.MAX_IMAGE_PIXELS


def noisy_tiffs() -> list[bytes]:
    """TIFF files with tags that Pillow warns of: too many values, values beyond the file, an entry cut off."""
    found = []
    for field, value in ((4, 900), (8, 2**31), (2, 5)):
        data = bytearray(saved(flag(), "TIFF", software="x" * 40))
        (at,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            if struct.unpack_from("<H", data, entry)[0] == 305:
                struct.pack_into("<I" if field != 2 else "<H", data, entry + field, value)
        found.append(bytes(data))
    twice = struct.pack(">I", 8) + b"acTL" + struct.pack(">II", 0, 0)
    found.append(png(2, 2, bytes(14), 8, 2, twice + struct.pack(">I", zlib.crc32(twice[4:]))))
    return found


def test_a_host_program_that_turns_warnings_into_errors_changes_nothing():
    files = [data for data, _ in FILES.values()] + noisy_tiffs()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for data in noisy_tiffs()[:2]:
            Image.open(io.BytesIO(data)).load()
    assert heard, "these files are to make Pillow warn"
    wanted = [outcome(data) for data in files]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [outcome(data) for data in files] == wanted


def test_pillows_registry_gets_nothing_but_what_its_own_modules_enter():
    for data, _ in FILES.values():
        outcome(data)
    for kind, (reader, _) in Image.OPEN.items():
        assert kind in ("HEIF",) or reader.__module__.startswith("PIL."), (kind, reader)
        if isinstance(reader, type):
            assert getattr(sys.modules[reader.__module__], reader.__name__) is reader


# ---- whatever is raised


class OddError(Exception):
    """Of no class that is known."""


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        TypeError("Missing dimensions"),
        IndexError("a\nb"),
        struct.error("s"),
        zlib.error("z"),
        RecursionError(),
        MemoryError(),
        OverflowError("o"),
        ZeroDivisionError(),
        AssertionError(),
        NotImplementedError("n"),
        BufferError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "u"),
        Image.DecompressionBombError("b"),
        UserWarning("w"),
        OddError("o\x1b[2J"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["load", "transpose", "convert"])
def test_whatever_a_decoder_raises_is_one_line_that_names_the_file(error, where, monkeypatch, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "picture.png"
    path.write_bytes(saved(flag().convert("CMYK"), "JPEG", exif=exif))

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(Image.Image, where, fails)
    with pytest.raises(
        ImageError, match=r"picture\.png: the image is damaged or cannot be read \("
    ) as caught:
        open_image(path)
    told = str(caught.value)
    assert "\n" not in told and "\x1b" not in told
    if isinstance(error, OddError | KeyError | TypeError):
        assert type(error).__name__ in told
    monkeypatch.undo()
    assert open_image(path).size == (16, 24)


def test_ctrl_c_in_a_decoder_is_no_damaged_picture(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_image(io.BytesIO(FILES["rgb.png"][0]))


# ---- what is no regular file


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def bound(path: Path) -> Path:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.close()
    return path


@pytest.mark.parametrize("read", [open_image, read_record, load_picture], ids=lambda read: read.__name__)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (pipe, "a named pipe, not a regular file"),
        (bound, "a socket, not a regular file"),
        (lambda path: Path("/dev/zero"), "a device, not a regular file"),
        (lambda path: path.parent, "a folder, not a regular file"),
        (lambda path: path.with_name("a\0b"), "no such file"),
        (lambda path: path.with_name("x" * 300), "cannot be read"),
        (lambda path: path, "no such file"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(make, words, read, tmp_path, soon, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = make(Path("a\nb.png") if make is not bound else Path("s.png")) if make is not None else None
    with pytest.raises(ImageError, match=words) as caught:
        read(Path(path))
    assert "\n" not in str(caught.value)


class Stream(io.RawIOBase):
    """What cannot seek and gives a few bytes at a time; its name is a number, as that of a descriptor."""

    name = 3

    def __init__(self, data: bytes) -> None:
        self.rest = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.rest.read(min(size, 100) if size >= 0 else 100)


class Bare:
    """A file object with no more than is needed."""

    def __init__(self, data: bytes) -> None:
        file = io.BytesIO(data)
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


@pytest.mark.parametrize("kind", [io.BytesIO, Bare, Stream])
@pytest.mark.parametrize(
    "name", ["rgb.png", "rgb.bmp", "plain.webp", "grey.jpg", "tiff_lzw.tif", "moving.gif"]
)
def test_file_objects_of_any_kind_are_read(kind, name):
    assert open_image(kind(FILES[name][0])).size == (24, 16)


def test_a_stream_is_read_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(image_files, "MAX_STREAM_BYTES", 100)
    with pytest.raises(ImageError, match="image: over 100 bytes"):
        open_image(Stream(FILES["rgb.png"][0] + bytes(2 << 20)))


def test_a_file_object_is_read_from_its_beginning_and_left_open():
    file = io.BytesIO(FILES["rgb.png"][0])
    file.seek(50)
    assert open_image(file).size == (24, 16) and not file.closed


# ---- formats


def boxes(*brands: bytes) -> bytes:
    content = brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", 8 + len(content)) + b"ftyp" + content + bytes(100)


NAMED = {
    "a.jxl": (b"\xff\x0a" + bytes(40), "JPEG XL"),
    "box.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL"),
    "a.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "JPEG 2000"),
    "a.j2k": (b"\xff\x4f\xff\x51" + bytes(40), "JPEG 2000"),
    "a.jls": (b"\xff\xd8\xff\xf7" + bytes(40), "JPEG-LS"),
    "a.wdp": (b"II\xbc\x01" + bytes(40), "JPEG XR"),
    "a.psd": (b"8BPS\0\1" + bytes(40), "Photoshop"),
    "a.svg": (b'<?xml version="1.0"?>\n<!-- x -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "a.pdf": (b"%PDF-1.7\n", "PDF"),
    "a.cr2": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(40), "Canon CR2"),
    "a.cr3": (boxes(b"crx ", b"crx ", b"isom"), "Canon CR3"),
    "a.orf": (b"IIRO\x08\0\0\0" + bytes(40), "Olympus"),
    "a.rw2": (b"IIU\0\x18\0\0\0" + bytes(40), "Panasonic"),
    "a.raf": (b"FUJIFILMCCD-RAW 0201" + bytes(40), "Fujifilm"),
    "a.mp4": (boxes(b"isom", b"isom", b"mp41"), "video"),
    "a.mov": (boxes(b"qt  ", b"qt  "), "video"),
    "a.mkv": (b"\x1aE\xdf\xa3" + bytes(40), "Matroska"),
    "a.avi": (b"RIFF\0\0\0\0AVI LIST", "AVI"),
    "a.exr": (b"v/1\x01" + bytes(40), "OpenEXR"),
    "a.qoi": (b"qoif" + bytes(40), "QOI"),
    "a.ico": (b"\0\0\1\0\1\0" + bytes(40), "ICO"),
    "a.ppm": (b"P6\n1 1\n255\nabc", "PPM"),
    "page.jpg": (b"\n<!DOCTYPE html><html><svg/></html>", "HTML"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "a.docx": (b"PK\x03\x04" + bytes(40), "ZIP"),
    "a.dcm": (bytes(128) + b"DICM" + bytes(40), "DICOM"),
}


@pytest.mark.parametrize("ending", ["", ".jpg", None])
@pytest.mark.parametrize("name", sorted(NAMED))
def test_formats_that_are_not_read_are_named_by_their_content(name, ending, tmp_path):
    data, words = NAMED[name]
    path = tmp_path / (name if ending is None else f"file{ending}")
    path.write_bytes(data)
    with pytest.raises(
        ImageError, match="not an image this program reads; convert it to PNG or JPEG"
    ) as caught:
        open_image(path)
    assert (
        words in str(caught.value)
        and str(caught.value).startswith(f"{path}: ")
        and "\n" not in str(caught.value)
    )


@pytest.mark.parametrize(
    "tags",
    [{50706: b"\1\4\0\0"}, {254: 1, 330: 8}, {262: 32803}, {262: 34892}],
    ids=["DNG", "a preview", "a sensor's grid", "linear RAW"],
)
def test_raw_photos_in_the_form_of_tiff_are_not_taken_for_their_previews(tags):
    data = bytearray(
        saved(
            Image.new("L", (8, 8)), "TIFF", tiffinfo={tag: value for tag, value in tags.items() if tag != 262}
        )
    )
    (at,) = struct.unpack_from("<I", data, 4)
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == 262 and 262 in tags:
            struct.pack_into("<H", data, entry + 8, tags[262])
    told = outcome(bytes(data))
    assert "camera's RAW" in told or (262 in tags and "damaged or cannot be read" in told)


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        ((b"heic", b"mif1", b"heic"), "HEIC"),
        ((b"mif1", b"mif1", b"heic"), "HEIC"),
        ((b"mif1", b"avif", b"mif1", b"miaf"), "AVIF"),
        ((b"msf1", b"hevc"), "HEIC"),
        ((b"avis", b"avif"), "AVIF"),
        ((b"heix",), "HEIC"),
        ((b"mif1",), "HEIC"),
    ],
)
def test_heic_and_avif_are_told_apart_by_their_brands(brands, kind):
    assert detect_format(boxes(*brands)) == kind


def test_heic_without_its_plug_in_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "PIL.AvifImagePlugin", None)
    image_files._isolated_reader.cache_clear()
    path = tmp_path / "IMG_1.HEIC"
    path.write_bytes(boxes(b"heic", b"mif1"))
    with pytest.raises(
        ImageError,
        match=re.escape(f'{path}: HEIC needs a plug-in: pip install "pillow-heif>=1.1,<2"'),
    ):
        open_image(path)
    with pytest.raises(ImageError, match="the installed Pillow does not read AVIF"):
        open_image(io.BytesIO(boxes(b"avif")))
    image_files._isolated_reader.cache_clear()


@pytest.mark.parametrize("turn", [1, 6])
def test_heic_is_read_upright_where_its_plug_in_is_installed(turn, tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = turn
    buffer = io.BytesIO()
    pillow_heif.from_pillow(flag().resize((64, 48))).save(buffer, quality=95, exif=exif.tobytes())
    image = open_image(buffer)
    assert image.size == ((64, 48) if turn == 1 else (48, 64))
    assert np.abs(np.array(image.getpixel((2, 2))) - (255, 0, 0)).max() < 12
    assert np.abs(np.array(image.getpixel((image.width - 3, image.height - 3))) - (0, 255, 0)).max() < 12
    assert "HEIF" not in Image.OPEN, "nothing is registered in a host program"
    with pytest.raises(ImageError, match="over the limit"):
        open_image(buffer, 100)
    with pytest.raises(ImageError, match="damaged"):
        open_image(io.BytesIO(buffer.getvalue()[:200]))


@pytest.mark.parametrize("turn", [1, 6])
def test_avif_is_read_upright_where_pillow_reads_it(turn):
    if not can_read_format("AVIF"):
        pytest.skip("this Pillow reads no AVIF")
    exif = Image.Exif()
    exif[0x0112] = turn
    image = open_image(io.BytesIO(saved(flag().resize((64, 48)), "AVIF", quality=95, exif=exif)))
    assert image.size == ((64, 48) if turn == 1 else (48, 64))
    assert np.abs(np.array(image.getpixel((2, 2))) - (255, 0, 0)).max() < 12


@pytest.mark.parametrize(
    "ending",
    [
        ".jpg",
        ".jpe",
        ".jfif",
        ".tif",
        ".mpo",
        ".png",
        ".heic",
        ".hif",
        ".avif",
        ".jxl",
        ".jp2",
        ".psd",
        ".svg",
        ".dng",
        ".nef",
        ".cr3",
    ],
)
def test_endings_of_pictures_are_known_in_small_letters(ending):
    assert ending in IMAGE_EXTENSIONS


@pytest.mark.parametrize("ending", [".txt", ".json", ".pdf", ".mp4", ".npy", "", ".xmp"])
def test_endings_of_other_files_are_none_of_pictures(ending):
    assert ending not in IMAGE_EXTENSIONS


# ---- remarks


def test_the_remark_on_several_frames_names_the_file_in_one_line(tmp_path, caplog):
    path = tmp_path / "a\n\x1b[31m.gif"
    path.write_bytes(FILES["moving.gif"][0])
    with caplog.at_level(logging.WARNING, "seed_edge"):
        open_image(path)
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.endswith("a\\n\\x1b[31m.gif has 3 frames or pages; only the first is used")


@pytest.mark.parametrize("cut", [0.4, 0.6, 0.8, 0.95])
def test_frames_behind_the_first_may_be_damaged(cut):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "green")]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for kind in ("GIF", "TIFF"):
        whole = saved(frames[0], kind, save_all=True, append_images=[noise] * 3)
        assert open_image(io.BytesIO(whole[: int(len(whole) * cut)])).getpixel((5, 5)) == (255, 0, 0)


def test_libtiff_prints_nothing_in_a_process_of_our_own(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = bytearray(saved(noise, "TIFF", compression="tiff_deflate"))
    data[200:260] = bytes(60)
    (tmp_path / "bad.tif").write_bytes(data)
    code = "{}\nfrom seed_edge.preprocess import open_image\ntry: open_image('bad.tif')\nexcept Exception as error: print(error)"

    def run(before: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code.format(before)], capture_output=True, text=True, cwd=tmp_path
        )

    if not run("").stderr:
        pytest.skip("this libtiff prints nothing")
    if native.libtiff() is None:
        pytest.skip("this Pillow has libtiff inside")
    ours = run("from seed_edge import native; native.configure_cli_process()")
    assert ours.stderr == "" and "bad.tif: the image is damaged" in ours.stdout


# ---- pixels as other programs see them


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def lines(pixels: np.ndarray, kind: str) -> bytes:
    return b"".join(b"\0" + row.astype(kind).tobytes() for row in pixels)


def gamma(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100000)))


def encoded(levels: np.ndarray) -> np.ndarray:
    light = levels / 255
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255


@pytest.mark.parametrize(
    ("value", "chunks", "linear"),
    [
        (1.0, b"", True),
        (
            1.0,
            chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
            True,
        ),
        (1.0, chunk(b"sRGB", b"\0"), False),
        (0.45455, b"", False),
        (0.55556, b"", False),
    ],
)
@pytest.mark.parametrize("kind", ["RGB", "L", "P", "RGBA", "I;16"])
def test_a_png_of_linear_light_becomes_srgb(value, chunks, linear, kind):
    grey = SLOPES[..., 0]
    parts = gamma(value) + chunks
    palette = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2], -1).astype(np.uint8)
    data, plain = {
        "RGB": (png(COLUMNS, ROWS, lines(SLOPES, "u1"), 8, 2, parts), SLOPES),
        "L": (png(COLUMNS, ROWS, lines(grey, "u1"), 8, 0, parts), grey[..., None].repeat(3, -1)),
        "P": (
            png(COLUMNS, ROWS, lines(grey, "u1"), 8, 3, parts, chunk(b"PLTE", palette.tobytes())),
            palette[grey],
        ),
        "RGBA": (png(COLUMNS, ROWS, lines(np.dstack([SLOPES, grey * 0 + 255]), "u1"), 8, 6, parts), SLOPES),
        "I;16": (
            png(COLUMNS, ROWS, lines(grey.astype(int) * 257, ">u2"), 16, 0, parts),
            grey[..., None].repeat(3, -1),
        ),
    }[kind]
    wanted = encoded(plain) if linear else plain
    assert np.abs(np.asarray(open_image(io.BytesIO(data))) - wanted.astype(float)).max() <= 1


def test_a_transparent_colour_of_16_bits_is_that_colour_only():
    colour = np.full((8, 12, 3), (1000, 2000, 3000))
    colour[:, 4:8] = (1001, 2000, 3000)
    colour[:, 8:] = (1000, 2000, 3256)
    key = chunk(b"tRNS", struct.pack(">HHH", 1000, 2000, 3000))
    image = np.asarray(open_image(io.BytesIO(png(12, 8, lines(colour, ">u2"), 16, 2, key))))
    assert (image[:, :4] == 255).all() and (image[:, 4:] < 13).all()
    grey = colour[..., 0]
    image = np.asarray(
        open_image(io.BytesIO(png(12, 8, lines(grey, ">u2"), 16, 0, chunk(b"tRNS", struct.pack(">H", 1001)))))
    )
    assert (image[:, 4:8] == 255).all() and (image[:, :4] < 5).all() and (image[:, 8:] < 5).all()


def test_a_transparent_colour_of_16_bits_is_turned_with_the_picture():
    colour = np.full((8, 12, 3), 40000)
    colour[:, :3] = (1000, 2000, 3000)
    exif = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
    parts = chunk(b"tRNS", struct.pack(">HHH", 1000, 2000, 3000)) + chunk(b"eXIf", exif)
    image = np.asarray(open_image(io.BytesIO(png(12, 8, lines(colour, ">u2"), 16, 2, parts))))
    assert image.shape == (12, 8, 3) and (image[:3] == 255).all() and (image[3:] < 160).all()


def patched(data: bytes, tag: int, value: int) -> bytes:
    changed = bytearray(data)
    (at,) = struct.unpack_from("<I", changed, 4)
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", changed, at)[0], 12):
        if struct.unpack_from("<H", changed, entry)[0] == tag:
            struct.pack_into("<H", changed, entry + 8, value)
    return bytes(changed)


@pytest.mark.parametrize("icc", [False, True])
def test_lab_in_both_ways_of_tiff_gives_the_colours_it_was_made_of(icc):
    soft = (SLOPES // 4 + 96).astype(np.uint8)  # within what Lab of 8 bits holds well
    spaces = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(Image.fromarray(soft), *spaces, outputMode="LAB")
    if icc:
        turned = [level ^ 128 for level in range(256)]
        data = patched(saved(lab.point([*range(256), *turned, *turned]), "TIFF"), 262, 9)
    else:
        data = saved(lab, "TIFF")
    assert np.abs(np.asarray(open_image(io.BytesIO(data))).astype(int) - soft).max() <= 3


def test_grey_of_16_bits_whose_zero_is_white_is_no_negative():
    levels = SLOPES[..., 0].astype(np.uint16) * 257
    data = patched(saved(Image.fromarray(levels), "TIFF"), 262, 0)
    assert (np.asarray(open_image(io.BytesIO(data)))[..., 0] == 255 - SLOPES[..., 0]).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("number", range(1, 9))
def test_the_direction_is_read_in_both_byte_orders(order, number):
    mark = b"II" if order == "<" else b"MM"
    exif = mark + struct.pack(
        order + "HIHHHIHHHHIHHI", 42, 8, 2, 0x0100, 3, 1, 9, 0, 0x0112, 3, 1, number, 0, 0
    )
    assert exif_orientation(b"Exif\0\0" + exif) == exif_orientation(exif) == number
    for end in range(len(exif) - 6):
        assert exif_orientation(exif[:end]) in (None, number)


# ---- memory


def test_large_jpegs_are_decoded_at_half_their_size():
    """A whole decoding would take four times the memory."""
    large = Image.new("L", (8000, 6300), 200)
    assert large.width * large.height > preprocess.DRAFT_PIXELS
    assert open_image(io.BytesIO(saved(large, "JPEG"))).size == (4000, 3150)


def test_jpegs_below_the_bound_are_decoded_whole(monkeypatch):
    monkeypatch.setattr(preprocess, "DRAFT_PIXELS", 10_000)
    assert open_image(io.BytesIO(saved(Image.new("RGB", (100, 100)), "JPEG"))).size == (100, 100)
    assert open_image(io.BytesIO(saved(Image.new("RGB", (200, 100)), "JPEG"))).size == (100, 50)


def test_a_gif_that_grows_behind_its_header_is_held_to_the_limit():
    data = (
        b"GIF89a"
        + struct.pack("<HHBBB", 10, 10, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 60000, 60000, 0)
        + b"\x08"
    )
    assert "over the limit of 1,000,000" in outcome(data + bytes(100), 1_000_000)


def test_the_header_of_a_picture_is_enough_for_its_record():
    with open_image_file(io.BytesIO(FILES["half.png"][0])) as image:
        assert image.size == (64, 64)
    assert is_seed_edge_image("/nowhere") is False
