"""Training samples: images with their captions, labels or conversations, read from the usual formats.

WebDataset tars, COCO captions, folders with `metadata.jsonl` (Hugging Face's imagefolder), folders of images
with text files beside them, LLaVA's conversations, and lines of image, question and answer. The format
follows from the path and its content. Images are not decoded here.
"""

from __future__ import annotations

import dataclasses
import io
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from seed_edge.data.webdataset import IMAGE_TYPES, Member, list_shard
from seed_edge.display import printable, shown
from seed_edge.errors import DataError, ImageError, SeedEdgeError
from seed_edge.image_decoding import decode_image
from seed_edge.image_files import open_image_file
from seed_edge.image_formats import IMAGE_EXTENSIONS
from seed_edge.inputs import parse_json, read_text

VALIDATION_SHARE = 10
"""Every n-th labelled photo, by a hash of its key, is held out."""
VALIDATION_NAME = "-val"
"""All samples of a file or folder with this in its name are held out."""
METADATA = "metadata.jsonl"
CAPTION_ENDING = ".txt"
"""Ending of a text file beside an image."""
IMAGE_MARK = "<image>"
"""Placeholder of an image in questions and answers."""

MAX_FILE_BYTES = 4 << 30
"""Maximum size of a file of records, in bytes; LLaVA's have one billion."""
MAX_RECORD = 1 << 20
"""Maximum size of the JSON or text of one sample, in bytes."""
MAX_PICTURES = 64
"""Maximum number of images of one sample."""

Picture = Member | Path
"""Location of an encoded image."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample: an image, several images or none, with its texts."""

    key: str
    captions: tuple[str, ...] = ()
    """Whole sentences."""
    turns: tuple[tuple[str, str], ...] = ()
    """A conversation about the images: pairs of question and answer."""
    label: str | None = None
    """Name of the thing shown."""
    phrases: tuple[str, ...] = ()
    """Descriptions of a drawing of several things, with articles."""
    tags: tuple[str, ...] = ()
    """Keywords, drawings only."""
    synonyms: tuple[str, ...] = ()
    """Everyday names other than the label."""
    style: str | None = None
    """Style of a drawing; None for a photo."""
    colour: str | None = None
    """Colour word of a drawing that one colour dominates."""
    recoloured: bool = False
    """The drawing was recoloured to `colour`, so its label alone does not describe it."""
    held_out: bool = False
    """Used for validation only."""

    @classmethod
    def from_record(cls, key: str, record: Mapping[str, Any], held_out: bool) -> Sample:
        """Make a sample from a JSON object: `captions`, `caption` or `text`; `label`; `conversations`;
        `question` with `answer`.

        Raises:
            DataError: a value has the wrong type.
        """
        label, style = _text_in(key, record, "label"), _text_in(key, record, "style")
        photo_of_label = label is not None and style is None
        captions = _texts_in(key, record, "captions")
        single = tuple(text for name in ("caption", "text") if (text := _text_in(key, record, name)))
        return cls(
            key=key,
            captions=captions or single,
            turns=_turns(key, record),
            label=label,
            phrases=_texts_in(key, record, "phrases"),
            tags=_texts_in(key, record, "tags"),
            synonyms=_texts_in(key, record, "synonyms"),
            style=style,
            colour=_text_in(key, record, "colour"),
            recoloured=bool(record.get("recoloured", False)),
            held_out=held_out
            or bool(record.get("held_out", False))
            or (photo_of_label and zlib.crc32(key.encode("utf-8", "surrogatepass")) % VALIDATION_SHARE == 0),
        )

    def to_record(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, without the key, as a JSON object for
        `from_saved`.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if name != "key" and value}

    @classmethod
    def from_saved(cls, key: str, record: Mapping[str, Any]) -> Sample:
        """Make a sample from a JSON object that `to_record` returned.

        Raises:
            DataError: a field is unknown or has the wrong type.
        """
        known = {field.name: field for field in dataclasses.fields(cls) if field.name != "key"}
        unknown = next((name for name in record if name not in known), None)
        if unknown is not None:
            raise DataError(f"{key}: {shown(unknown)} is not a field of a sample")
        fields: dict[str, Any] = {}
        for name in record:
            default = known[name].default
            if name == "turns":
                fields[name] = _pairs_in(key, record)
            elif isinstance(default, bool):
                fields[name] = _flag_in(key, record, name)
            else:
                fields[name] = (_texts_in if isinstance(default, tuple) else _text_in)(key, record, name)
        return cls(key=key, **fields)


def _text_in(key: str, record: Mapping[str, Any], name: str) -> str | None:
    """Return a text, or a number as text; None if it is missing, null or empty."""
    value = record.get(name)
    if value is None or value == "":
        return None
    if type(value) not in (str, int, float):
        raise DataError(f"{key}: {name} is {shown(value)}; it must be a text")
    return str(value)


def _texts_in(key: str, record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = record.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(item) in (str, int, float) for item in value):
        raise DataError(f"{key}: {name} is {shown(value)}; it must be a list of texts")
    return tuple(map(str, value))


def _flag_in(key: str, record: Mapping[str, Any], name: str) -> bool:
    value = record.get(name, False)
    if type(value) is not bool:
        raise DataError(f"{key}: {name} is {shown(value)}; it must be true or false")
    return value


def _pairs_in(key: str, record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return saved turns: pairs of texts."""
    value = record["turns"]
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    if not pairs or not all(isinstance(text, str) for pair in value for text in pair):
        raise DataError(f"{key}: turns is {shown(value)}; it must be a list of pairs of texts")
    return tuple((question, answer) for question, answer in value)


def _turns(key: str, record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    if "conversations" in record:
        parts = record["conversations"]
        if not isinstance(parts, list) or not all(
            isinstance(part, dict) and {"from", "value"} <= part.keys() for part in parts
        ):
            raise DataError(
                f"{key}: conversations is {shown(parts)}; it must be a list of objects with from and value"
            )
        messages = [(str(part["from"]), str(part["value"])) for part in parts]
        asked = [text.replace(IMAGE_MARK, " ").strip() for who, text in messages if who in ("human", "user")]
        answered = [text.strip() for who, text in messages if who in ("gpt", "assistant")]
        if len(asked) != len(answered) or not asked:
            raise DataError(f"{key}: conversations must alternate between human and gpt and end with gpt")
        return tuple(zip(asked, answered, strict=True))
    if "question" in record:
        answers = record.get("answers")
        answer = record.get("answer") or (answers[0] if isinstance(answers, list) and answers else None)
        if answer is None:
            raise DataError(f"{key}: a question without an answer")
        return ((str(record["question"]), str(answer)),)
    return ()


def read_samples(
    paths: Sequence[Path], images: Path | None = None
) -> Iterator[tuple[Sample, tuple[Picture, ...]]]:
    """Yield the samples of all paths in order, with the locations of their images, which are not opened yet.

    Args:
        paths: `.tar`, COCO's or LLaVA's `.json`, `.jsonl`, folders with `metadata.jsonl`, or folders of
            images with text files (`01.jpg` beside `01.txt` or `01.jpg.txt`).
        images: folder that file names in `.json` and `.jsonl` are relative to; by default where the file
            lies.

    Raises:
        DataError: a path is missing or of another kind, a record is incomplete, or there is no sample at all.
    """
    empty = True
    for path in paths:
        held_out = VALIDATION_NAME in path.name
        for key, record, pictures in _records(path, images):
            empty = False
            yield Sample.from_record(key, record, held_out), pictures
    if empty:
        raise DataError(f"no samples in {', '.join(map(str, paths))}; give data with --data")


def _records(path: Path, images: Path | None) -> Iterator[tuple[str, Mapping[str, Any], tuple[Picture, ...]]]:
    if path.suffix == ".tar":
        yield from _read_tar(path)
    elif path.is_dir():
        yield from _read_lines(path / METADATA, path) if (path / METADATA).exists() else _read_folder(path)
    elif path.suffix == ".jsonl":
        yield from _read_lines(path, images or path.parent)
    elif path.suffix == ".json":
        content = _json(path, _text(path))
        read = _read_coco if isinstance(content, dict) else _read_list
        yield from read(path, content, images or path.parent)
    else:
        reason = "is none of .tar, .json, .jsonl" if path.exists() else "is missing"
        raise DataError(
            f"{path} {reason}; --data takes these, or a folder of images with {METADATA} or text files"
        )


def _read_tar(path: Path) -> Iterator[tuple[str, Mapping[str, Any], tuple[Picture, ...]]]:
    for key, files in list_shard(path):
        picture = next((files[kind] for kind in IMAGE_TYPES if kind in files), None)
        if picture is None:
            continue
        record = _json(f"{path}: {key}.json", _decoded(path, files["json"])) if "json" in files else {}
        if "txt" in files and not record:
            record = {"caption": _decoded(path, files["txt"])}
        yield key, _object(f"{path}: {key}.json", record), (picture,)


def _read_folder(path: Path) -> Iterator[tuple[str, Mapping[str, Any], tuple[Picture, ...]]]:
    """Yield the images of a folder in the order of their names, each with the text file beside it as its
    caption.

    `seed-edge caption --sidecar txt` writes such files. An image without one has no caption; sub-folders are
    not read.
    """
    images = sorted(
        entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_EXTENSIONS and entry.is_file()
    )
    if not images:
        raise DataError(
            f"{path} holds neither {METADATA} nor images; --data takes folders of images with texts"
        )
    for image in images:
        beside = (image.with_name(image.name + CAPTION_ENDING), image.with_suffix(CAPTION_ENDING))
        text = next((file for file in beside if file.exists()), None)
        yield image.stem, {} if text is None else {"caption": _short_text(text)}, (image,)


def _short_text(path: Path) -> str:
    """Read the text of one sample, without surrounding white space."""
    try:
        return read_text(path, MAX_RECORD, DataError).strip()
    except DataError as error:
        raise DataError(f"{path} cannot be read ({error})") from error


def _decoded(path: Path, member: Member) -> str:
    if member.size > MAX_RECORD:
        raise DataError(
            f"{path}: {member.name} has {member.size:,} bytes; a record has at most {MAX_RECORD:,}"
        )
    try:
        return member.read().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {member.name} is not text ({error})") from error


def _read_lines(path: Path, images: Path) -> Iterator[tuple[str, Mapping[str, Any], tuple[Picture, ...]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}: line {number}"
            yield _locate_images(where, _object(where, _json(where, line)), images, f"{path.stem}-{number}")


def _read_list(
    path: Path, content: Any, images: Path
) -> Iterator[tuple[str, Mapping[str, Any], tuple[Picture, ...]]]:
    if not isinstance(content, list):
        raise DataError(f"{path} is neither COCO's captions nor a list of conversations")
    for number, record in enumerate(content):
        where = f"{path}: record {number}"
        yield _locate_images(where, _object(where, record), images, f"{path.stem}-{number}")


def _locate_images(
    where: str, record: Mapping[str, Any], images: Path, key: str
) -> tuple[str, Mapping[str, Any], tuple[Picture, ...]]:
    value = record.get("file_name") or record.get("image") or ()
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [value]
    if len(names) > MAX_PICTURES or not all(
        isinstance(name, str) and name and "\0" not in name for name in names
    ):
        raise DataError(
            f"{where}: image is {shown(value)}; it must be the name of a file, or a list of at most "
            f"{MAX_PICTURES}"
        )
    if not names and "conversations" not in record:
        raise DataError(f"{where} names no image; it needs `image` or `file_name`")
    key = str(
        record.get("id") or (Path(names[0]).stem if len(names) == 1 and "question" not in record else key)
    )
    return key, record, tuple(images / name for name in names)


def _read_coco(
    path: Path, content: Mapping[str, Any], images: Path
) -> Iterator[tuple[str, Mapping[str, Any], tuple[Picture, ...]]]:
    try:
        captions: dict[Any, list[str]] = defaultdict(list)
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(str(annotation["caption"]))
        for image in content["images"]:
            if captions[image["id"]]:
                yield str(image["id"]), {"captions": captions[image["id"]]}, (images / image["file_name"],)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} lacks {error}; a .json is COCO's captions or a list of conversations"
        ) from error


def _text(path: Path) -> str:
    try:
        return read_text(path, MAX_FILE_BYTES, DataError)
    except DataError as error:
        raise DataError(f"{path} cannot be read ({error})") from error


def _json(where: Path | str, text: str) -> Any:
    try:
        return parse_json(text, str(where), DataError)
    except DataError as error:
        raise DataError(f"{where} is not JSON ({error})") from error


def _object(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a JSON object")
    return value


def load_picture(picture: Picture) -> Image.Image:
    """Read an image, upright, in the mode of its file.

    Raises:
        ImageError: the file is missing, damaged or not an image.
    """
    if isinstance(picture, Path):
        with open_image_file(picture) as image:
            return decode_image(image)
    name = f"{picture.tar}: {picture.name}"
    try:
        content = picture.read()
    except SeedEdgeError:
        raise
    except OSError as error:
        raise ImageError(f"{printable(name)}: cannot be read ({error.strerror})") from error
    with open_image_file(io.BytesIO(content), name=name) as image:
        return decode_image(image)
