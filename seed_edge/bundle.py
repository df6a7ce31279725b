"""Bundles: a directory with a manifest, two ONNX graphs and a GGUF file. Alone spells file names and reads JSON.

A bundle is checked before anything in it is opened by a native library, and is written so that it exists either
whole or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seed_edge.errors import BundleError
from seed_edge.preprocess import FILTERS, Preprocessing
from seed_edge.prompts import Prompts
from seed_edge.vocab import Vocab

FORMAT = 1
"""Version of the manifest's layout."""
KINDS = ("pixels",)
"""What decoder.onnx draws: `pixels`, a finished picture in one pass."""

MANIFEST = "manifest.json"
ENCODER = "encoder.onnx"
DECODER = "decoder.onnx"
LANGUAGE_MODEL = "llm.gguf"
FILES = (ENCODER, DECODER, LANGUAGE_MODEL)

EMBEDDED = Path(__file__).parent / "bundles" / "mini"
"""The bundle inside this package."""

MANIFEST_LIMIT = 1 << 20
HASH_LIMIT = 64 << 20
"""Bundles up to this size, in bytes, are hashed whenever they are opened; larger ones by `Bundle.check_hashes`."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle."""

    size: int
    """Bytes."""
    sha256: str
    """Lower-case hexadecimal."""


@dataclass(frozen=True)
class Source:
    """Something the weights were made from."""

    name: str
    licence: str
    role: str


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn from the language model's distribution."""

    temperature: float
    """0 takes the likeliest code."""
    top_k: int
    """Only this many likeliest codes may be drawn; 0 for all."""
    top_p: float
    """Only the likeliest codes that together hold this probability; 1 for all."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise BundleError(f"sampling {self}: temperature and top_k are at least 0, top_p is in (0, 1]")


@dataclass(frozen=True)
class Manifest:
    """Every number the runtime needs, and where the bundle comes from."""

    format: int
    name: str
    kind: str
    preprocessing: Preprocessing
    output_size: int
    """Side of a drawn picture, in pixels."""
    vocab: Vocab
    prompts: Prompts
    sampling: Sampling
    context_length: int
    """Most ids of prompt and answer together."""
    max_caption_ids: int
    files: dict[str, FileEntry]
    parity: dict[str, Any] = field(default_factory=dict)
    """What the exporter measured: exported graphs against the checkpoint."""
    sources: tuple[Source, ...] = ()
    licence: str = ""
    """What the weights may be used for."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise BundleError(f"manifest format {self.format}, this version reads {FORMAT}; export again or update")
        if self.kind not in KINDS:
            raise BundleError(f"bundle kind {self.kind!r} is unknown (known: {', '.join(KINDS)}); update seed-edge")
        if self.preprocessing.resize_filter not in FILTERS:
            raise BundleError(f"resize filter {self.preprocessing.resize_filter!r} is unknown; export again")
        if set(self.files) != set(FILES):
            odd = ", ".join(sorted(set(self.files) ^ set(FILES)))
            raise BundleError(f"manifest lists the wrong files ({odd}); a bundle holds {', '.join(FILES)}; export again")

    def to_json(self) -> str:
        """Text of `manifest.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse `manifest.json`.

        Raises:
            BundleError: not JSON, or a field is missing, unknown, or of the wrong type.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise BundleError(f"{MANIFEST} is not JSON ({error}); export again") from error
        manifest: Manifest = _parse(cls, value, MANIFEST)
        return manifest


def _parse(kind: Any, value: Any, where: str) -> Any:
    """`value`, from JSON, as the annotated type `kind`; strict about fields and types."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise BundleError(f"{where}: expected an object; export again")
        hints = typing.get_type_hints(kind)
        required = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory}  # both MISSING
        unknown, missing = sorted(set(value) - set(hints)), sorted(required - set(value))
        if unknown or missing:
            raise BundleError(f"{where}: missing [{', '.join(missing)}], unknown [{', '.join(unknown)}]; export again")
        return kind(**{name: _parse(hints[name], item, f"{where}: {name}") for name, item in value.items()})
    if origin is dict and isinstance(value, dict):
        return {key: _parse(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inner) == len(value):
            return tuple(_parse(t, item, where) for t, item in zip(inner, value, strict=True))
    if kind is Any or (kind in (str, bool, int) and type(value) is kind):
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    raise BundleError(f"{where}: {json.dumps(value)[:60]} is not {getattr(kind, '__name__', kind)}; export again")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest was read and whose files are the listed ones."""

    path: Path
    manifest: Manifest

    @property
    def encoder(self) -> Path:
        """The graph from pixels to codes."""
        return self.path / ENCODER

    @property
    def decoder(self) -> Path:
        """The graph from codes to pixels."""
        return self.path / DECODER

    @property
    def language_model(self) -> Path:
        """The GGUF file."""
        return self.path / LANGUAGE_MODEL

    @classmethod
    def open(cls, path: str | Path | None = None) -> Bundle:
        """Read and check a bundle; by default the embedded one.

        Raises:
            BundleError: no bundle there, or a file is missing, resized, changed, unlisted, or not a plain file.
        """
        folder = EMBEDDED if path is None else Path(path)
        if not folder.is_dir():
            raise BundleError(f"{folder}: no such bundle; give the folder that `seed-edge export --out` wrote")
        text = _read_manifest(folder / MANIFEST)
        try:
            manifest = Manifest.from_json(text)
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from None
        bundle = cls(folder, manifest)
        try:
            bundle._check_files()
            if sum(entry.size for entry in manifest.files.values()) <= HASH_LIMIT:
                bundle.check_hashes()
        except OSError as error:
            raise BundleError(f"{error.filename} cannot be read ({error.strerror}); look at its permissions") from error
        return bundle

    def _check_files(self) -> None:
        present = {entry.name: entry for entry in os.scandir(self.path)}
        for name, expected in self.manifest.files.items():
            entry = present.pop(name, None)
            if entry is None:
                raise BundleError(f"{self.path / name} is missing; copy the bundle again or export again")
            if not entry.is_file(follow_symlinks=False):
                raise BundleError(f"{self.path / name} is a link or no plain file; a bundle holds real files")
            size = entry.stat(follow_symlinks=False).st_size
            if size != expected.size:
                raise BundleError(
                    f"{self.path / name} has {size:,} bytes, the manifest says {expected.size:,}; copy or export it again"
                )
        present.pop(MANIFEST, None)
        if present:
            raise BundleError(f"{self.path / min(present)} is not listed in {MANIFEST}; remove it from the bundle")

    def check_hashes(self) -> None:
        """Compare every file's SHA-256 with the manifest's.

        Raises:
            BundleError: a file differs; it is named.
        """
        for name, expected in self.manifest.files.items():
            if sha256(self.path / name) != expected.sha256:
                raise BundleError(f"{self.path / name} is not the file that was exported; copy or export it again")


def _read_manifest(path: Path) -> str:
    if path.is_symlink():
        raise BundleError(f"{path} is a link; a bundle holds real files")
    try:
        if path.stat().st_size > MANIFEST_LIMIT:
            raise BundleError(f"{path} is over {MANIFEST_LIMIT:,} bytes; this is no manifest")
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise BundleError(f"{path} is missing; this folder is no bundle") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read ({error})") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry_for(path: Path) -> FileEntry:
    """What the manifest says of a file."""
    return FileEntry(path.stat().st_size, sha256(path))


@contextmanager
def staging(out: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends without an error.

    Every file is flushed to disk before the rename. An error or Ctrl-C removes the folder.

    Args:
        replace: an existing bundle at `out` is replaced; anything else there is never touched.

    Raises:
        BundleError: `out` exists and may not be replaced, or its parent cannot be written.
    """
    if out.exists() and not (replace and (out / MANIFEST).is_file()):
        hint = "it is no bundle" if replace else "use --replace, or another --out"
        raise BundleError(f"{out} exists already; {hint}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise BundleError(f"{out.parent} cannot be written ({error.strerror}); choose another --out") from error
    try:
        yield folder
        for name in os.listdir(folder):
            _flush(folder / name)
        _flush(folder)
        folder.chmod(0o777 & ~_umask())
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
            os.replace(out, old / out.name)
            os.replace(folder, out)
            shutil.rmtree(old)
        else:
            os.replace(folder, out)
        _flush(out.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
