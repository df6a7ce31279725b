"""Image files as they come: every one that this program may meet, made here, with what is to become of it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
WIDTH, HEIGHT = 24, 16
NO_IMAGE, DAMAGED, LARGE, RANGE = (
    "not an image this program reads",
    "damaged or cannot be read",
    "over the limit",
    "no fixed range",
)


def flag() -> Image.Image:
    """Red, the right half green."""
    image = Image.new("RGB", (WIDTH, HEIGHT), RED)
    image.paste(GREEN, (WIDTH // 2, 0, WIDTH, HEIGHT))
    return image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, data: bytes = b"", depth: int = 8, kind: int = 2, *chunks: bytes) -> bytes:
    """A PNG file by hand."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def with_profile(name: str) -> bytes:
    """An ICC profile in which the first channel means what sRGB calls green, or another space."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()
    if name != "sRGB":
        return profile
    data = bytearray(profile)
    count = struct.unpack(">I", data[128:132])[0]
    tags = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"] + 4, tags[b"gXYZ"] + 4
    data[red : red + 8], data[green : green + 8] = data[green : green + 8], data[red : red + 8]
    at, size = struct.unpack(">II", data[tags[b"desc"] + 4 : tags[b"desc"] + 12])
    data[at : at + size] = data[at : at + size].replace(
        "sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")
    )
    return bytes(data)


def corpus() -> dict[str, tuple[bytes, object]]:
    """Name of a file -> its bytes, and colours (left, right) with the size, or words of the error."""
    red_green, size = (RED, GREEN), (WIDTH, HEIGHT)
    fine = (red_green, size)
    found: dict[str, tuple[bytes, object]] = {}
    base = flag()
    grey, alpha = base.convert("L"), Image.new("L", size, 255)
    levels = tuple((level, level, level) for level in (grey.getpixel((0, 0)), grey.getpixel((WIDTH - 1, 0))))
    half = base.convert("RGBA")
    half.putalpha(Image.new("L", size, 0))
    # ---- modes
    found["rgb.png"] = saved(base, "PNG"), fine
    found["rgba.png"] = saved(base.convert("RGBA"), "PNG"), fine
    found["transparent.png"] = saved(half, "PNG"), ((WHITE, WHITE), size)
    found["grey.png"] = saved(grey, "PNG"), (levels, size)
    found["grey-alpha.png"] = saved(Image.merge("LA", (grey, alpha)), "PNG"), (levels, size)
    found["bits.png"] = (
        saved(grey.point(lambda v: 255 * (v > 100)).convert("1"), "PNG"),
        (((0,) * 3, WHITE), size),
    )
    found["palette.png"] = saved(base.quantize(4), "PNG"), fine
    found["palette-transparent.png"] = (
        saved(base.quantize(4), "PNG", transparency=bytes([0] * 4)),
        ((WHITE, WHITE), size),
    )
    found["colour-key.png"] = saved(base, "PNG", transparency=RED), ((WHITE, GREEN), size)
    deep = Image.fromarray(
        np.where(np.arange(WIDTH) < WIDTH // 2, 0, 65535).astype(np.uint16)[None].repeat(HEIGHT, 0)
    )
    found["sixteen.png"] = saved(deep, "PNG"), (((0,) * 3, WHITE), size)
    found["sixteen.tif"] = saved(deep, "TIFF"), (((0,) * 3, WHITE), size)
    found["cmyk.jpg"] = saved(base.convert("CMYK"), "JPEG", quality=95), fine
    found["cmyk.tif"] = saved(base.convert("CMYK"), "TIFF"), fine
    found["ycbcr.tif"] = saved(base.convert("YCbCr"), "TIFF"), fine
    found["float.tif"] = saved(Image.new("F", size), "TIFF"), RANGE
    found["integers.tif"] = saved(Image.new("I", size), "TIFF"), RANGE
    # ---- sizes
    found["one.png"] = saved(base.crop((0, 0, 1, 1)), "PNG"), ((RED, RED), (1, 1))
    found["wide.png"] = saved(base.resize((6000, 1)), "PNG"), (red_green, (6000, 1))
    found["tall.png"] = saved(base.crop((0, 0, 1, 1)).resize((1, 6000)), "PNG"), ((RED, RED), (1, 6000))
    # ---- directions
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        turned = number >= 5
        swapped = {2: True, 3: True, 7: True, 8: None, 6: None, 5: None}.get(number, False)
        if not turned:
            found[f"direction-{number}.jpg"] = (
                saved(base, "JPEG", quality=98, exif=exif), (red_green[::-1] if swapped else red_green, size)
            )  # fmt: skip
        else:
            found[f"direction-{number}.jpg"] = saved(base, "JPEG", quality=98, exif=exif), (None, size[::-1])
    odd = Image.Exif()
    odd[0x0112] = 77
    found["direction-77.jpg"] = saved(base, "JPEG", quality=98, exif=odd), fine
    # ---- JPEG
    found["progressive.jpg"] = saved(base, "JPEG", quality=98, progressive=True), fine
    found["grey.jpg"] = saved(grey, "JPEG", quality=98), (levels, size)
    found["subsampled.jpg"] = saved(base, "JPEG", quality=98, subsampling=2), fine
    found["comment.jpg"] = saved(base, "JPEG", quality=98, comment=b"x" * 60000), fine
    found["behind.jpg"] = saved(base, "JPEG", quality=98) + b"junk" * 1000, fine
    found["no-ending.jpg"] = saved(base, "JPEG", quality=98)[:-2], DAMAGED
    found["two.mpo"] = (
        saved(base, "MPO", quality=98, save_all=True, append_images=[Image.new("RGB", size, BLUE)]),
        fine,
    )
    found["broken-exif.jpg"] = saved(base, "JPEG", quality=98, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), fine
    # ---- colour profiles
    found["swapped-profile.jpg"] = (
        saved(base, "JPEG", quality=98, icc_profile=with_profile("sRGB")),
        ((GREEN, RED), size),
    )
    found["swapped-profile.png"] = saved(base, "PNG", icc_profile=with_profile("sRGB")), ((GREEN, RED), size)
    found["plain-profile.png"] = (
        saved(base, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        fine,
    )
    found["broken-profile.png"] = saved(base, "PNG", icc_profile=b"no profile at all"), fine
    found["other-profile.png"] = saved(base, "PNG", icc_profile=with_profile("LAB")), fine
    found["palette-profile.png"] = (
        saved(base.quantize(4), "PNG", icc_profile=with_profile("sRGB")),
        ((GREEN, RED), size),
    )
    # ---- GIF, WebP, animated PNG
    other = Image.new("RGB", size, BLUE)
    found["plain.gif"] = saved(base, "GIF"), fine
    found["moving.gif"] = saved(base, "GIF", save_all=True, append_images=[other, base]), fine
    found["transparent.gif"] = saved(half, "GIF"), ((WHITE, WHITE), size)
    found["plain.webp"] = saved(base, "WEBP", quality=100), fine
    found["lossless.webp"] = saved(base, "WEBP", lossless=True), fine
    found["transparent.webp"] = saved(half, "WEBP", lossless=True), ((WHITE, WHITE), size)
    found["moving.webp"] = saved(base, "WEBP", save_all=True, append_images=[other], lossless=True), fine
    found["moving.png"] = saved(base, "PNG", save_all=True, append_images=[other]), fine
    # ---- BMP, TIFF
    found["rgb.bmp"] = saved(base, "BMP"), fine
    found["palette.bmp"] = saved(base.quantize(4), "BMP"), fine
    found["bits.bmp"] = (
        saved(grey.point(lambda v: 255 * (v > 100)).convert("1"), "BMP"),
        (((0,) * 3, WHITE), size),
    )
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits"):
        found[f"{compression}.tif"] = saved(base, "TIFF", compression=compression), fine
    found["pages.tif"] = saved(base, "TIFF", save_all=True, append_images=[other]), fine
    # ---- names and metadata
    found["a png.jpg"] = saved(base, "PNG"), fine
    found["ünï cødé 图.png"] = saved(base, "PNG"), fine
    found["behind.png"] = saved(base, "PNG") + b"junk" * 1000, fine
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "x" * 50000, zip=True)
    found["text.png"] = saved(base, "PNG", pnginfo=text), fine
    # ---- what is no image, or no whole one
    found["empty.png"] = b"", NO_IMAGE
    found["text.txt"] = b"hello", NO_IMAGE
    found["page.jpg"] = b"<!doctype html><title>404</title>", NO_IMAGE
    found["drawing.svg"] = b'<svg xmlns="http://www.w3.org/2000/svg"/>', NO_IMAGE
    found["paper.pdf"] = b"%PDF-1.7\n", NO_IMAGE
    found["allowed-elsewhere.ppm"] = saved(base, "PPM"), NO_IMAGE
    found["allowed-elsewhere.ico"] = saved(base, "ICO", sizes=[(16, 16)]), NO_IMAGE
    found["allowed-elsewhere.tga"] = saved(base, "TGA"), NO_IMAGE
    found["script.eps"] = saved(base, "EPS"), NO_IMAGE
    for kind, end in (
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
    ):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
        whole = saved(noise, kind)
        found[f"half.{end}"] = whole[: len(whole) // 2], (DAMAGED, NO_IMAGE)
        found[f"head.{end}"] = whole[:16], (DAMAGED, NO_IMAGE)
    whole = bytearray(saved(base, "PNG"))
    whole[20] ^= 255
    found["wrong-sum.png"] = bytes(whole), (DAMAGED, NO_IMAGE)
    found["no-width.png"] = png(0, 5), (DAMAGED, NO_IMAGE)
    found["bomb.png"] = png(60000, 60000), LARGE
    found["bomb.gif"] = (
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\x08",
        LARGE,
    )
    found["bomb.bmp"] = (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50000, 50000, 1, 24, 0, 0, 0, 0, 0, 0),
        LARGE,
    )
    found["no-pixels.png"] = png(10, 10, b""), (DAMAGED, NO_IMAGE)
    found["text-bomb.png"] = png(2, 2, b"\0" + bytes(6) + b"\0" + bytes(6), 8, 2, _bomb()), DAMAGED
    loop = bytearray(saved(base, "TIFF"))
    first = struct.unpack("<I", loop[4:8])[0]
    entries = struct.unpack("<H", loop[first : first + 2])[0]
    loop[first + 2 + 12 * entries : first + 6 + 12 * entries] = struct.pack("<I", first)
    found["loop.tif"] = bytes(loop), fine
    return found


def _bomb() -> bytes:
    """A chunk of text that is a hundred megabytes when unpacked."""
    content = b"key\0\0" + zlib.compress(bytes(100 << 20))
    return (
        struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    )
