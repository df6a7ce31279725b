"""Training samples: pictures with what is known of them, read from the formats people have.

WebDataset tars, COCO captions, folders with `metadata.jsonl` (Hugging Face's imagefolder), LLaVA's conversations, and lines of
image, question and answer. Which one a path is, its content tells. Pictures are not decoded here.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from seed_edge.display import printable
from seed_edge.errors import DataError, ImageError
from seed_edge.picture_files import loaded, opened
from seed_edge.train.shards import IMAGE_TYPES, Member, list_shard

VALIDATION_SHARE = 10
"""Every n-th labelled photo, by a hash of its key, is kept for validation."""
VALIDATION_NAME = "-val"
"""What the name of a file or folder contains whose samples are all kept for validation."""
METADATA = "metadata.jsonl"
IMAGE_MARK = "<image>"
"""Stands in LLaVA's questions where the picture belongs."""

Picture = Member | Path
"""Where an encoded picture lies."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample: a picture, or several, or none, and what is known."""

    key: str
    captions: tuple[str, ...] = ()
    """Whole sentences."""
    turns: tuple[tuple[str, str], ...] = ()
    """A conversation about the pictures: questions with their answers."""
    label: str | None = None
    """Name of the thing shown."""
    phrases: tuple[str, ...] = ()
    """What is shown, with article, in several ways: drawings of several things."""
    tags: tuple[str, ...] = ()
    """Keywords, drawings only."""
    synonyms: tuple[str, ...] = ()
    """What people call it, other than the label."""
    style: str | None = None
    """Design of a drawing; None for a photo."""
    colour: str | None = None
    """Colour word, where one colour dominates a drawing."""
    recoloured: bool = False
    """The drawing was given `colour` by us; its label alone would mislead."""
    held_out: bool = False
    """For validation only."""

    @classmethod
    def from_record(cls, key: str, record: Mapping[str, Any], held_out: bool) -> Sample:
        """From a JSON object: `captions`, `caption` or `text`; `label`; `conversations`; `question` with `answer`."""
        label = record.get("label") or None
        photo_of_label = label is not None and record.get("style") is None
        captions = record.get("captions") or [record[name] for name in ("caption", "text") if record.get(name)]
        return cls(
            key=key,
            captions=tuple(map(str, captions)),
            turns=_turns(key, record),
            label=label,
            phrases=tuple(record.get("phrases", ())),
            tags=tuple(record.get("tags", ())),
            synonyms=tuple(record.get("synonyms", ())),
            style=record.get("style"),
            colour=record.get("colour"),
            recoloured=bool(record.get("recoloured", False)),
            held_out=held_out
            or bool(record.get("held_out", False))
            or (photo_of_label and zlib.crc32(key.encode()) % VALIDATION_SHARE == 0),
        )

    def to_record(self) -> dict[str, Any]:
        """Everything but the key that is not the default, as JSON; `from_saved` reads it back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if name != "key" and value}

    @classmethod
    def from_saved(cls, key: str, record: Mapping[str, Any]) -> Sample:
        """From what `to_record` gave."""
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
        fields["turns"] = tuple((question, answer) for question, answer in record.get("turns", ()))
        return cls(key=key, **fields)


def _turns(key: str, record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    if "conversations" in record:
        said = [(str(part["from"]), str(part["value"])) for part in record["conversations"]]
        asked = [text.replace(IMAGE_MARK, " ").strip() for who, text in said if who in ("human", "user")]
        answered = [text.strip() for who, text in said if who in ("gpt", "assistant")]
        if len(asked) != len(answered) or not asked:
            raise DataError(f"{key}: conversations must alternate between human and gpt and end with gpt")
        return tuple(zip(asked, answered, strict=True))
    if "question" in record:
        answer = record.get("answer") or next(iter(record.get("answers", ())), None)
        if answer is None:
            raise DataError(f"{key}: a question without an answer")
        return ((str(record["question"]), str(answer)),)
    return ()


def read_samples(paths: Sequence[Path], images: Path | None = None) -> Iterator[tuple[Sample, tuple[Picture, ...]]]:
    """Samples of all paths in order, with their pictures; these may still turn out to be missing or damaged.

    Args:
        paths: `.tar`, COCO's or LLaVA's `.json`, `.jsonl`, or folders with `metadata.jsonl`.
        images: folder that file names in `.json` and `.jsonl` are relative to; by default where the file lies.

    Raises:
        DataError: a path is missing or none of these, or a record lacks what it needs; or there is no sample at all.
    """
    found = False
    for path in paths:
        held_out = VALIDATION_NAME in path.name
        for key, record, pictures in _records(path, images):
            found = True
            yield Sample.from_record(key, record, held_out), pictures
    if not found:
        raise DataError(f"no pictures in {', '.join(map(str, paths))}; give data with --data")


def _records(path: Path, images: Path | None) -> Iterator[tuple[str, Mapping[str, Any], tuple[Picture, ...]]]:
    if path.suffix == ".tar":
        yield from _of_tar(path)
    elif path.is_dir():
        yield from _of_lines(path / METADATA, path)
    elif path.suffix == ".jsonl":
        yield from _of_lines(path, images or path.parent)
    elif path.suffix == ".json":
        content = _json(path, _text(path))
        of = _of_coco if isinstance(content, dict) else _of_list
        yield from of(path, content, images or path.parent)
    else:
        what = "is none of .tar, .json, .jsonl" if path.exists() else "is missing"
        raise DataError(f"{path} {what}; --data takes these, or a folder with {METADATA}")


def _of_tar(path: Path) -> Iterator[tuple[str, Mapping[str, Any], tuple[Picture, ...]]]:
    for key, files in list_shard(path):
        picture = next((files[kind] for kind in IMAGE_TYPES if kind in files), None)
        if picture is None:
            continue
        record = _json(f"{path}: {key}.json", _decoded(path, files["json"])) if "json" in files else {}
        if "txt" in files and not record:
            record = {"caption": _decoded(path, files["txt"])}
        yield key, _object(f"{path}: {key}.json", record), (picture,)


def _decoded(path: Path, member: Member) -> str:
    try:
        return member.read().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {member.name} is no text ({error})") from error


def _of_lines(path: Path, images: Path) -> Iterator[tuple[str, Mapping[str, Any], tuple[Picture, ...]]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            where = f"{path}: line {number}"
            yield _of_record(where, _object(where, _json(where, line)), images, f"{path.stem}-{number}")


def _of_list(path: Path, content: Any, images: Path) -> Iterator[tuple[str, Mapping[str, Any], tuple[Picture, ...]]]:
    if not isinstance(content, list):
        raise DataError(f"{path} is neither COCO's captions nor a list of conversations")
    for number, record in enumerate(content):
        where = f"{path}: record {number}"
        yield _of_record(where, _object(where, record), images, f"{path.stem}-{number}")


def _of_record(
    where: str, record: Mapping[str, Any], images: Path, key: str
) -> tuple[str, Mapping[str, Any], tuple[Picture, ...]]:
    named = record.get("file_name") or record.get("image") or ()
    names = [named] if isinstance(named, str) else list(named)
    if not names and "conversations" not in record:
        raise DataError(f"{where} names no picture; it needs `image` or `file_name`")
    key = str(record.get("id") or (Path(names[0]).stem if len(names) == 1 and "question" not in record else key))
    return key, record, tuple(images / name for name in names)


def _of_coco(
    path: Path, content: Mapping[str, Any], images: Path
) -> Iterator[tuple[str, Mapping[str, Any], tuple[Picture, ...]]]:
    try:
        captions: dict[Any, list[str]] = defaultdict(list)
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        for image in content["images"]:
            if captions[image["id"]]:
                yield str(image["id"]), {"captions": captions[image["id"]]}, (images / image["file_name"],)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} lacks {error}; a .json is COCO's captions or a list of conversations") from error


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error


def _json(where: Path | str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error})") from error


def _object(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} is no JSON object")
    return value


def load_picture(picture: Picture) -> Image.Image:
    """The picture upright, in whatever mode it has.

    Raises:
        ImageError: it is missing, damaged or no picture.
    """
    if isinstance(picture, Path):
        with opened(picture) as image:
            return loaded(image)
    name = f"{picture.tar}: {picture.name}"
    try:
        content = picture.read()
    except OSError as error:
        raise ImageError(f"{printable(name)}: cannot be read ({error.strerror})") from error
    with opened(io.BytesIO(content), name=name) as image:
        return loaded(image)
