"""Folders of samples with the codes of their images: the training data of language models.

A folder contains tars with one JSON object per sample, `codes.json` with the code space, and, if it is known,
the codebook. `seed-edge tokenize` writes it.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seed_edge.atomic import replacing
from seed_edge.data.samples import MAX_RECORD, Picture, Sample
from seed_edge.data.webdataset import Member, ShardWriter, list_shard
from seed_edge.errors import BundleError, CodesError, DataError, ImageError, SeedEdgeError
from seed_edge.inputs import open_regular, parse_json
from seed_edge.models.fields import Fields
from seed_edge.output_checks import prepare_output_folder
from seed_edge.vocab import CodeSpace

INFO, CODEBOOK, SHARD, SHARDS = "codes.json", "codebook.npz", "codes-{:05d}.tar", "codes-*.tar"
SAMPLES_PER_SHARD = 10_000
MAX_CODEBOOK, MAX_CODES = 1 << 20, 4096
MAX_CODEBOOK_BYTES = 1 << 30
"""Maximum size of `codebook.npz`, in bytes."""
BATCH = 16

Codes = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class CodeSample:
    """A sample and the codes of its images."""

    sample: Sample
    images: tuple[Codes, ...]
    """One array (codes_per_image,) int64 for each image."""
    views: tuple[Codes, ...] = ()
    """Further codes of a single image: of crops, shifts and mirror images. For captioning, not
    for drawing.
    """


@dataclasses.dataclass(frozen=True)
class Codebook:
    """The vectors of the codes."""

    vectors: NDArray[np.float32]
    """(codebook_size, code_dim)."""
    own_rows: tuple[int, int] = (0, 0)
    """Number of leading codes of an image that have separate codebook rows, and number of these rows per
    code.
    """


def write_code_shards(
    out: Path,
    space: CodeSpace,
    samples: Iterable[CodeSample],
    codebook: Codebook | None = None,
    per_shard: int = SAMPLES_PER_SHARD,
) -> int:
    """Write samples into a folder; return their number. Shards of an interrupted call are removed first.

    Args:
        codebook: None where it is unknown.
        per_shard: maximum number of samples in a tar.
    """
    prepare_output_folder(out, "codes")
    (out / CODEBOOK).unlink(missing_ok=True)
    if codebook is not None:
        with replacing(out / CODEBOOK) as partial, open(partial, "wb") as file:
            np.savez(file, vectors=codebook.vectors, own_rows=codebook.own_rows)
    for stale in out.glob(SHARDS):
        stale.unlink()
    remaining, count, shard = iter(samples), 0, 0
    while chunk := list(islice(remaining, per_shard)):
        with ShardWriter(out / SHARD.format(shard)) as writer:
            for number, sample in enumerate(chunk):
                writer.write(f"{number:05d}", {"json": json.dumps(_record(sample)).encode()})
        count, shard = count + len(chunk), shard + 1
    with replacing(out / INFO) as partial:
        partial.write_text(json.dumps(dataclasses.asdict(space)) + "\n")
    return count


def _record(sample: CodeSample) -> dict[str, object]:
    record = {
        "key": sample.sample.key,
        **sample.sample.to_record(),
        "codes": [codes.tolist() for codes in sample.images],
    }
    return record | ({"views": [codes.tolist() for codes in sample.views]} if sample.views else {})


def read_code_shards(folders: Sequence[Path]) -> tuple[CodeSpace, dict[str, list[CodeSample]]]:
    """Read folders that `seed-edge tokenize` wrote; return the code space, and the samples by folder name.

    Raises:
        DataError: a folder has no finished codes, has another code space than the folders before it, or has
            no samples at all.
    """
    space: CodeSpace | None = None
    by_folder: dict[str, list[CodeSample]] = {}
    for folder in folders:
        try:
            fields = Fields.read(folder / INFO, error=DataError)
            folder_space = CodeSpace(
                fields.integer("codebook_size", 1, MAX_CODEBOOK),
                fields.integer("codes_per_image", 1, MAX_CODES),
            )
        except (DataError, BundleError) as error:
            raise DataError(
                f"{folder} holds no finished codes ({error}); make them with `seed-edge tokenize`"
            ) from error
        if space not in (None, folder_space):
            raise DataError(
                f"{folder} has {folder_space}, earlier folders have {space}; tokenize all with one bundle"
            )
        space = folder_space
        samples = by_folder.setdefault(folder.resolve().name, [])
        for path in sorted(folder.glob(SHARDS)):
            for key, files in list_shard(path):
                samples.append(_from_record(f"{path}: {key}", _read_record(f"{path}: {key}", files), space))
    if space is None or not any(by_folder.values()):
        raise DataError(f"no samples in {', '.join(map(str, folders))}; make them with `seed-edge tokenize`")
    return space, by_folder


def read_codebook(folders: Sequence[Path]) -> Codebook | None:
    """Read the codebook of the first folder that has one; return None if no folder has one.

    Raises:
        DataError: the codebook is damaged.
    """
    path = next((folder / CODEBOOK for folder in folders if (folder / CODEBOOK).exists()), None)
    if path is None:
        return None
    try:
        vectors, own_rows = _read_arrays(path)
    except SeedEdgeError:
        raise
    except (
        OSError,
        ValueError,
        LookupError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
        struct.error,
    ) as error:
        raise DataError(f"{path} does not hold a codebook ({error}); tokenize again") from error
    if vectors.dtype != np.float32 or vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise DataError(
            f"{path} does not hold a codebook (its vectors are {vectors.dtype} of shape {vectors.shape}); "
            "tokenize again"
        )
    if (
        own_rows.dtype.kind != "i"
        or own_rows.shape != (2,)
        or not 0 <= own_rows.min() <= own_rows.max() <= MAX_CODEBOOK
    ):
        raise DataError(
            f"{path} does not hold a codebook (own_rows is {own_rows.dtype} of shape {own_rows.shape}); "
            "tokenize again"
        )
    return Codebook(vectors, (int(own_rows[0]), int(own_rows[1])))


def _read_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read the arrays `vectors` and `own_rows`. Compressed archives are an error, since they may expand far
    beyond their size.
    """
    with open_regular(path, DataError) as file:
        size = file.seek(0, 2)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        if size > MAX_CODEBOOK_BYTES or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, or too large")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its parts are larger than the file")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["vectors"], arrays["own_rows"]


def _read_record(where: str, files: Mapping[str, Member]) -> dict[str, Any]:
    """Read the JSON object of a sample.

    Raises:
        DataError: it is missing, too large, or not an object.
    """
    member = files.get("json")
    if member is None or member.size > MAX_RECORD:
        raise DataError(
            f"{where} is not a sample with codes (its JSON is missing or too large); tokenize again"
        )
    try:
        text = member.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not a sample with codes ({error}); tokenize again") from error
    return dict(Fields.of(parse_json(text, where, DataError), where, DataError).values)


def _from_record(where: str, record: dict[str, Any], space: CodeSpace) -> CodeSample:
    try:
        images, views = (tuple(space.check(codes) for codes in record.pop(n, ())) for n in ("codes", "views"))
        return CodeSample(Sample.from_saved(record.pop("key"), record), images, views)
    except (CodesError, DataError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where} is not a sample with codes ({error}); tokenize again") from error


def tokenized(
    samples: Iterable[tuple[Sample, tuple[Picture, ...]]],
    encode: Callable[[Sequence[Picture]], Codes],
    failed: Callable[[str, str], None],
) -> Iterator[CodeSample]:
    """Yield samples with the codes of their images, encoded in batches.

    Args:
        encode: images -> codes (images, codes_per_image).
        failed: called with key and reason for each sample with an image that cannot be read; such samples are
            left out.
    """
    remaining = iter(samples)
    while chunk := list(islice(remaining, BATCH)):
        yield from _encoded(chunk, encode, failed)


def _encoded(
    chunk: Sequence[tuple[Sample, tuple[Picture, ...]]],
    encode: Callable[[Sequence[Picture]], Codes],
    failed: Callable[[str, str], None],
) -> Iterator[CodeSample]:
    pictures = [picture for _, sample_pictures in chunk for picture in sample_pictures]
    try:
        codes = iter(encode(pictures) if pictures else ())
    except ImageError as error:
        if len(chunk) > 1:  # find the image that cannot be read
            for item in chunk:
                yield from _encoded([item], encode, failed)
        else:
            failed(chunk[0][0].key, str(error))
        return
    for sample, sample_pictures in chunk:
        yield CodeSample(sample, tuple(islice(codes, len(sample_pictures))))
