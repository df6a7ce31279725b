import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from seed_edge.errors import ImageError
from seed_edge.preprocess import Preprocessing, open_image, to_images, to_rgb


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG of that size, up to where its pixels would start."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_pixels_are_scaled_and_normalised_per_channel():
    preprocessing = Preprocessing(2, "bilinear", (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    values = preprocessing([Image.new("RGB", (9, 5), (255, 0, 51))])
    assert values.shape == (1, 3, 2, 2) and values.dtype == np.float32
    assert values[0, :, 0, 0] == pytest.approx([1.0, -1.0, 0.2], abs=1e-6)


def test_the_whole_picture_is_squeezed_not_cropped():
    image = Image.new("RGB", (400, 100), "red")
    image.paste("blue", (200, 0, 400, 100))
    values = Preprocessing(4, "bilinear", (0.0,) * 3, (1.0,) * 3)([image])
    assert values[0, 0, 0].tolist() == pytest.approx([1, 1, 0, 0], abs=0.15)


def test_views_show_the_same_thing_nearer_farther_paler_and_mirrored():
    image = Image.new("RGB", (600, 300), (0, 0, 250))
    image.paste((250, 0, 0), (60, 30, 240, 240))
    preprocessing = Preprocessing(60, "bilinear", (0.0,) * 3, (1.0,) * 3)
    as_is, nearer, farther, paler = views = preprocessing.views(image, 4)
    assert views.shape == (4, 3, 60, 60) and (as_is == preprocessing([image])[0]).all()
    for count in (1, 2, 3):
        assert (preprocessing.views(image, count) == views[:count]).all()
    red = [view[0] > 0.5 for view in (as_is, nearer, farther)]
    shares = [float(each.mean()) for each in red]
    assert shares == pytest.approx([shares[0], shares[0] / 0.86**2, shares[0] / 1.2**2], rel=0.08)
    left = [float(each[:, :30].sum() / each.sum()) for each in red]
    assert left[0] > 0.9 and left[1] < 0.1 and left[2] > 0.7
    for edge in (farther[:, 0], farther[:, -1], farther[:, :, 0], farther[:, :, -1]):
        assert np.allclose(edge.T, np.array([0, 0, 250]) / 255, atol=1e-6)
    contrast = (as_is.max(0) - as_is.min(0)).max()
    assert (paler.max(0) - paler.min(0)).max() == pytest.approx(0.6 * contrast, abs=0.01)
    assert (paler[0] > paler[2])[:, ::-1].tolist() == (as_is[0] > as_is[2]).tolist()


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (3, 2)])
def test_the_smallest_pictures_have_all_views(size):
    preprocessing = Preprocessing(8, "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert preprocessing.views(Image.new("L", size, 255), 4) == pytest.approx(np.ones((4, 3, 8, 8)))


def test_resize_filters_differ_and_are_antialiased():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8))
    bilinear, bicubic = (
        Preprocessing(16, f, (0.0,) * 3, (1.0,) * 3)([noise]) for f in ("bilinear", "bicubic")
    )
    assert np.abs(bilinear - bicubic).max() > 0.01
    assert bilinear.std() < 0.05  # noise averages out over 14 x 14 pixels


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    assert list(to_rgb(image).get_flattened_data()) == [(255, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["LA", "PA", "P"])
def test_transparency_of_other_modes_is_laid_over_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    if mode == "P":
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([0, 0, 0, 255, 0, 0])
        image = open_image(saved(palette, "PNG", transparency=0))
    else:
        image = to_rgb(image.convert(mode))
    assert image.mode == "RGB" and image.getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    image = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert [p[0] for p in open_image(saved(image, "PNG")).get_flattened_data()] == [0, 128, 255]


def test_cmyk_becomes_rgb():
    image = open_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = image.getpixel((4, 4))
    assert red > 200 and green < 60 and blue < 60


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (40, 20), "white")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(saved(image, "JPEG", exif=exif)).size == (20, 40)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    image = open_image(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_huge_images_are_refused_by_their_header():
    with pytest.raises(ImageError, match="30000 x 30000") as caught:
        open_image(io.BytesIO(png_header(30000, 30000)))
    assert "--max-pixels" in str(caught.value)


def test_the_limit_can_be_lowered_and_raised():
    picture = Image.new("RGB", (100, 100))
    with pytest.raises(ImageError, match="over the limit of 9,999"):
        open_image(saved(picture, "PNG"), max_pixels=9_999)
    assert open_image(saved(picture, "PNG"), max_pixels=10_000).size == (100, 100)


def test_the_limit_of_pillow_is_left_alone():
    before = Image.MAX_IMAGE_PIXELS
    open_image(saved(Image.new("RGB", (8, 8)), "PNG"))
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", b"\x00" * 1000, png_header(8, 8), b"%PDF-1.4", b"II*\x00\x08\x00\x00\x00"],
    ids=["empty", "text", "zeros", "header only", "pdf", "tiff stub"],
)
def test_what_is_no_image_is_one_clear_error(data, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"broken\.png"):
        open_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_images_are_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, kind).getvalue()
    assert open_image(io.BytesIO(data)).size == (64, 64)
    with pytest.raises(ImageError, match=r"damaged|not an image"):
        open_image(io.BytesIO(data[: len(data) // 2]))


def test_formats_outside_the_list_are_refused():
    with pytest.raises(ImageError, match="not an image this program reads"):
        open_image(saved(Image.new("RGB", (8, 8)), "PPM"))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError):
        open_image(tmp_path)


def test_float_pixels_are_refused_rather_than_clipped():
    with pytest.raises(ImageError, match="mode F"):
        open_image(saved(Image.new("F", (4, 4)), "TIFF"))


def test_pixels_become_pictures_clipped():
    pixels = np.array([-1.0, 0.5, 2.0], np.float32).reshape(1, 3, 1, 1)
    (image,) = to_images(pixels)
    assert image.getpixel((0, 0)) == (0, 128, 255)
