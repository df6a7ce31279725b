"""Image file formats: file name extensions, and detection of the format by content."""

from __future__ import annotations

import re

EXTENSIONS_BY_FORMAT = {
    "JPEG": ".jpg .jpeg .jpe .jfif .jif .mpo",
    "PNG": ".png .apng",
    "WebP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp .dib",
    "TIFF": ".tif .tiff",
    "HEIC": ".heic .heics .heif .heifs .hif",
    "AVIF": ".avif .avifs",
    "others": ".jxl .jp2 .j2k .jpf .jpx .jxr .wdp .psd .psb .svg .svgz .tga .ico .exr .hdr .qoi .ppm "
    ".pgm .pbm .pnm",
    "RAW": ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw"
    " .orf .pef .raf .raw .rw2 .rwl .sr2 .srw .x3f",
}
"""Lower-case file name extensions of images, by format. Files of the last two rows raise an error when
opened.
"""
IMAGE_EXTENSIONS = frozenset(name for row in EXTENSIONS_BY_FORMAT.values() for name in row.split())
"""Lower-case extensions, with the dot, of the files in a folder that are opened as images. The content
decides the format.
"""

HEAD_BYTES = 1024
"""Number of bytes at the beginning of a file that format detection needs."""

READERS = {
    "JPEG": (
        "PIL.JpegImagePlugin",
        "JpegImageFile",
    ),  # only the first image of an MPO file
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIC": ("pillow_heif", "HeifImageFile"),
}
"""Module and class that read each format; the last two are not part of every installation."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that every installation reads; Pillow's other readers are never used."""
MISSING_READER = {
    "HEIC": 'HEIC needs a plug-in: pip install "pillow-heif>=1.1,<2"',
    "AVIF": "the installed Pillow does not read AVIF: pip install --upgrade pillow",
}
"""Message for each format of `READERS` whose reader may not be installed."""

SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"BM", "BMP"),
    (8, b"CR\x02", "a camera's RAW (Canon CR2)"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"IIRO", "a camera's RAW (Olympus ORF)"),
    (0, b"IIRS", "a camera's RAW (Olympus ORF)"),
    (0, b"MMOR", "a camera's RAW (Olympus ORF)"),
    (0, b"IIU\0", "a camera's RAW (Panasonic RW2)"),
    (6, b"HEAPCCDR", "a camera's RAW (Canon CRW)"),
    (0, b"FUJIFILMCCD-RAW", "a camera's RAW (Fujifilm RAF)"),
    (0, b"FOVb", "a camera's RAW (Sigma X3F)"),
    (0, b"\0MRM", "a camera's RAW (Minolta MRW)"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (4, b"jP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"8BPS", "a Photoshop document (PSD)"),
    (0, b"gimp xcf", "a GIMP document (XCF)"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"\0\0\2\0", "a cursor (CUR)"),
    (0, b"icns", "an icon (ICNS)"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"),
    (0, b"qoif", "QOI"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FLIF", "FLIF"),
    (0, b"DDS ", "a texture (DDS)"),
    (0, b"AT&TFORM", "DjVu"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)"),
    (40, b" EMF", "a Windows metafile (EMF)"),
    (128, b"DICM", "a medical image (DICOM)"),
    (4, b"moov", "a video (QuickTime)"),
    (4, b"mdat", "a video (QuickTime)"),
    (0, b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (8, b"AVI ", "a video (AVI)"),
    (8, b"WAVE", "a sound (WAV)"),
    (0, b"\0\0\1\xba", "a video (MPEG)"),
    (0, b"\0\0\1\xb3", "a video (MPEG)"),
    (0, b"FLV\1", "a video (Flash)"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (Windows Media)"),
    (0, b"OggS", "a video or sound (Ogg)"),
    (0, b"ID3", "a sound (MP3)"),
    (0, b"fLaC", "a sound (FLAC)"),
    (0, b"PK\x03\x04", "a ZIP archive or an office document"),
    (0, b"\x1f\x8b", "a gzip file (SVGZ, or an archive)"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"\xd0\xcf\x11\xe0", "an office document"),
    (0, b"version https://git-lfs", "a Git LFS pointer instead of the image (run `git lfs pull`)"),
    (0, b"SQLite format 3", "a database"),
)
"""Offset, magic bytes and name of each format; names in `READERS` are formats that can be read."""
BRANDS_BY_FORMAT = {
    "HEIC": b"heic heix heim heis hevc hevx hevm hevs",
    "AVIF": b"avif avis",
    "a camera's RAW (Canon CR3)": b"crx ",
}
"""Brands of ISO base media files (`ftyp`), by format. Brands not listed here or in `GENERIC_BRANDS` are
videos.
"""
GENERIC_BRANDS = (b"mif1", b"msf1", b"miaf")
"""Brands that several image formats share; the compatible brands then decide the format."""
TEXT_SIGNATURES = (
    (re.compile(rb"\A(?:<!doctype html|<html\b)", re.I), "a web page (HTML)"),
    (re.compile(rb"<svg\b", re.I), "a vector drawing (SVG)"),
    (re.compile(rb"\AP[1-7]\s"), "a portable pixmap (PPM, PGM, PBM or PAM)"),
    (re.compile(rb"\A<\?xml"), "an XML document"),
)


def detect_format(head: bytes) -> str:
    """Name of a file's format: a key of `READERS`, the name of an unsupported format, or an empty string.

    Args:
        head: the first `HEAD_BYTES` bytes of a file, or fewer.
    """
    if head[4:8] == b"ftyp":
        return _isobmff_format(head)
    for offset, magic, name in SIGNATURES:
        if head.startswith(magic, offset):
            return name
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((name for pattern, name in TEXT_SIGNATURES if pattern.search(text)), "")


def _isobmff_format(head: bytes) -> str:
    """Format of an ISO base media file (ISO/IEC 14496-12) by its major and compatible brands."""
    length = min(int.from_bytes(head[:4]), len(head))
    brands = [head[8:12], *(head[offset : offset + 4] for offset in range(16, length - 3, 4))]
    if brands[0] in GENERIC_BRANDS:
        brands = [brand for brand in brands if brand not in GENERIC_BRANDS] or brands
    for name, known in BRANDS_BY_FORMAT.items():
        if brands[0] in known.split(b" ") or brands[0] == known:
            return name
    if head[8:12] not in GENERIC_BRANDS:
        return "a video, or another ISO media file"
    avif = any(brand in BRANDS_BY_FORMAT["AVIF"].split() for brand in brands)
    return "AVIF" if avif else "HEIC"


def unsupported_message(format_name: str, head: bytes) -> str:
    """Error message for a file whose format cannot be read.

    Args:
        format_name: result of `detect_format`.
    """
    if format_name in MISSING_READER:
        return f"{MISSING_READER[format_name]}; or convert it to PNG or JPEG"
    if format_name:
        return f"{format_name}, not an image this program reads; convert it to PNG or JPEG"
    empty = "" if head else "; the file is empty"
    return f"not an image this program reads ({', '.join(FORMATS)}){empty}"
