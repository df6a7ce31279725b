"""Converts image sources to PIL images, PIL images to the encoder's input, and pixels to PIL images.

All parameters come from the caller; those of a bundle are in its manifest. This module does not know about
codes or graphs.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from seed_edge.errors import ImageError
from seed_edge.image_decoding import count_frames, decode_image
from seed_edge.image_files import MAX_PIXELS, display_name, open_image_file

log = logging.getLogger("seed_edge")

DRAFT_PIXELS = 50_000_000
"""JPEGs larger than this are decoded at a reduced size, to bound memory."""

LINEAR_GAMMA = 0.75
"""PNG files with a gamma above this are treated as linear light, others as sRGB."""
MAX_PROFILE = 4 << 20
"""Maximum size in bytes of an ICC profile that is applied; printer profiles have about 2 MB."""
MODE_BY_COLOUR_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode for each colour space of an ICC profile."""

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's training images, which SEED-2 uses: red, green, blue in [0, 1]."""


@dataclass(frozen=True)
class Preprocessing:
    """How images become the encoder's input; part of a bundle's manifest."""

    image_size: int
    """Side of the square the image is resized to, in pixels; the aspect ratio is not kept."""
    resize_filter: str
    """`bilinear` or `bicubic`, both antialiased as Pillow does it."""
    mean: tuple[float, float, float]
    """Subtracted from RGB values in [0, 1]."""
    std: tuple[float, float, float]
    """Divides the result."""

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Normalised pixels of RGB images: (len(images), 3, image_size, image_size)."""
        return self.normalise(np.stack([np.asarray(self.square(image)) for image in images]))

    def square(self, image: Image.Image) -> Image.Image:
        """The image as RGB, resized to `image_size` x `image_size` pixels."""
        size = (self.image_size, self.image_size)
        rgb = to_rgb(image)
        return rgb if rgb.size == size else rgb.resize(size, FILTERS[self.resize_filter])

    def views(self, image: Image.Image, count: int) -> NDArray[np.float32]:
        """Normalised pixels (count, 3, image_size, image_size) of up to `MAX_VIEWS` augmented views of an
        image.

        The views are: the image; zoomed in and mirrored; zoomed out; less saturated and mirrored. All show
        the same content with different codes; a caption that fits all views is correct more often.
        """
        return self.normalise(
            np.stack([np.asarray(square) for square in itertools.islice(self._views(image), count)])
        )

    def _views(self, image: Image.Image) -> Iterator[Image.Image]:
        rgb = to_rgb(image)
        square = self.square(rgb)
        yield square
        yield ImageOps.mirror(self.square(_zoomed_in(rgb)))
        yield _zoomed_out(square, FILTERS[self.resize_filter])
        yield ImageOps.mirror(ImageEnhance.Color(square).enhance(SATURATION))

    def normalise(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(batch, S, S, 3) bytes -> (batch, 3, S, S) normalised floats."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = ((squares.astype(np.float32) / np.float32(255)) - mean) / std
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2), dtype=np.float32)


CROP_MARGIN = 0.07
"""Fraction of the width and height that the zoomed-in view crops at each side."""
SHRINK_FACTOR = 1.2
"""Factor by which the image is reduced in the zoomed-out view."""
SATURATION = 0.6
"""Saturation factor of the less saturated view."""
MAX_VIEWS = 4
"""Maximum number of views of `Preprocessing.views`."""


def _zoomed_in(rgb: Image.Image) -> Image.Image:
    """The image without its margins. Not `Image.crop`, which applies Pillow's process-wide pixel limit."""
    width, height = rgb.size
    x, y = int(CROP_MARGIN * width), int(CROP_MARGIN * height)
    return rgb.transform(
        (width - 2 * x, height - 2 * y), Image.Transform.EXTENT, (x, y, width - x, height - y)
    )


def _zoomed_out(square: Image.Image, resample: Image.Resampling) -> Image.Image:
    """A reduced copy, with a margin in the median colour of the image's border."""
    pixels, side = np.asarray(square), round(square.width / SHRINK_FACTOR)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (int(value) for value in np.median(border, 0))
    result = Image.new("RGB", square.size, (red, green, blue))
    result.paste(square.resize((side, side), resample), ((square.width - side) // 2,) * 2)
    return result


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB: transparency over white, 16-bit grey scaled to 8 bits.

    Raises:
        ImageError: the mode has no defined range (32-bit floats and integers).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        levels = np.asarray(image)
        grey = (levels.astype(np.uint32) * 255 // 65535).astype(np.uint8)
        key = image.info.get("transparency")
        if isinstance(key, int):
            grey[levels == key] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"32-bit pixels (mode {image.mode}) have no fixed range; save the image as 8 or 16 bit"
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def open_image(source: str | os.PathLike[str] | IO[bytes], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image file as upright 8-bit RGB; of an animation, the first frame.

    Args:
        source: path of a regular file, or a binary file object.
        max_pixels: maximum number of pixels.

    Raises:
        ImageError: the file does not exist, is not regular, not an image, damaged, or too large.
    """
    with open_image_file(source, max_pixels) as image:
        name = display_name(source)
        frames = count_frames(image)
        if frames > 1:
            log.warning("%s has %s frames or pages; only the first is used", name, frames)
        if image.format == "JPEG" and image.width * image.height > DRAFT_PIXELS:
            image.draft("RGB", (image.width // 2, image.height // 2))
        try:
            return in_srgb(decode_image(image))
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error


ImageSource = (
    Image.Image | str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | NDArray[np.uint8]
)
"""An image: a PIL image, a path, the content of an image file, a binary file object, or RGB pixels (height,
width, 3).
"""


def as_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Convert any image source to a PIL image; a PIL image is returned unchanged.

    Args:
        max_pixels: maximum number of pixels of an image file.

    Raises:
        ImageNotFoundError: there is no file at the path.
        ImageError: `source` is not an image, or cannot be read.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
            raise ImageError(
                f"an array of shape {source.shape} and type {source.dtype} is not an image; pass (height, "
                "width, 3) of uint8"
            )
        return Image.fromarray(np.ascontiguousarray(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return open_image(io.BytesIO(source), max_pixels)
    if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
        return open_image(source, max_pixels)
    raise ImageError(
        f"{type(source).__name__} is not an image; pass a path, bytes, a binary file object, a PIL image, or "
        "an array (height, width, 3) of uint8"
    )


def image_list(sources: Sequence[ImageSource] | NDArray[np.uint8], name: str) -> list[ImageSource]:
    """Check that `sources` is a list of at least one image.

    Args:
        name: name of the argument, for messages.

    Raises:
        ImageError: `sources` is a single image, or empty.
    """
    single = isinstance(sources, str | bytes | bytearray | memoryview | os.PathLike | Image.Image) or hasattr(
        sources, "read"
    )
    if single or (isinstance(sources, np.ndarray) and sources.ndim == 3):
        raise ImageError(
            f"{name} must be a list of images, not one image ({type(sources).__name__}); pass [image]"
        )
    try:
        images: list[ImageSource] = list(sources)
    except TypeError:
        raise ImageError(f"{name} must be a list of images, not {type(sources).__name__}") from None
    if not images:
        raise ImageError("no images to encode; pass at least one")
    return images


def in_srgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB (`to_rgb`), from its ICC profile to sRGB; a damaged profile is ignored.

    A PNG image without a profile, but with a gamma of linear light, is encoded as sRGB.
    """
    data = image.info.get("icc_profile")
    if not data and "srgb" not in image.info and image.info.get("gamma", 0) > LINEAR_GAMMA:
        return to_rgb(_linear_to_srgb(image))
    if not data or len(data) > MAX_PROFILE:
        return to_rgb(image)
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        if space == "RGB" and "sRGB" in (profile.profile.profile_description or ""):
            return to_rgb(image)
        if MODE_BY_COLOUR_SPACE.get(space) != image.mode and space == "RGB":
            image = to_rgb(image)
        if MODE_BY_COLOUR_SPACE.get(space) != image.mode:
            return to_rgb(image)
        converted = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        log.debug("an ICC profile is ignored (%s)", error)
        return to_rgb(image)
    assert converted is not None
    return converted


def _linear_to_srgb(image: Image.Image) -> Image.Image:
    """Encode an image of linear light as sRGB: RGB, RGBA or 16-bit grey."""
    if image.mode.startswith("I;16"):
        table = (_srgb_transfer(np.arange(65536) / 65535) * 65535).round().astype(np.uint16)
        result = Image.fromarray(table[np.asarray(image)])
        key = image.info.get("transparency")
        if isinstance(key, int):
            result.info["transparency"] = int(table[key & 65535])
        return result
    table8 = (_srgb_transfer(np.arange(256) / 255) * 255).round().astype(int).tolist()
    if image.has_transparency_data:
        return image.convert("RGBA").point([*table8 * 3, *range(256)])
    return image.convert("RGB").point(table8 * 3)


def _srgb_transfer(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Transfer function of sRGB: linear light in [0, 1] to values in [0, 1]."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def to_images(pixels: NDArray[np.float32]) -> list[Image.Image]:
    """(batch, 3, H, W) floats, clipped to [0, 1] -> RGB images."""
    arrays = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return [Image.fromarray(array) for array in arrays]
