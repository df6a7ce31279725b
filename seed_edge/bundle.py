"""Bundles: a directory with a manifest and the files it lists.

A bundle is checked before anything in it is opened by a native library, and is written so that it exists
either whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from seed_edge.atomic import create_temporary_folder
from seed_edge.errors import BundleError, BundleNotFoundError, SeedEdgeError
from seed_edge.gguf_header import GgufHeader
from seed_edge.inputs import read_json
from seed_edge.manifest import (
    DECODER,
    ENCODER,
    IMAGE_NOISE,
    MANIFEST,
    UNET,
    VAE,
    Diffusion,
    FileEntry,
    Language,
    Manifest,
)
from seed_edge.onnx_header import OnnxHeader
from seed_edge.output_checks import check_not_around
from seed_edge.user_dirs import BUNDLE_NAME, Checked, bundle_folder, bundle_names

EMBEDDED = Path(__file__).parent / "bundles" / "mini"
"""The bundle inside this package."""

MANIFEST_LIMIT = 1 << 20
HASH_LIMIT = 64 << 20
"""Bundles up to this size, in bytes, are hashed when they are opened; larger ones by
`Bundle.check_hashes`.
"""
HEADER = "header-1"
"""Name of the check of headers, with its version."""


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
        """The graph from codes to pixels, or to image embeddings."""
        return self.path / DECODER

    @property
    def unet(self) -> Path:
        """The graph of the diffusion."""
        return self.path / UNET

    @property
    def vae(self) -> Path:
        """The graph from latents to pixels."""
        return self.path / VAE

    @property
    def image_noise(self) -> Path:
        """Arrays of the diffusion."""
        return self.path / IMAGE_NOISE

    @property
    def language(self) -> Language:
        """The language model's section of the manifest.

        Raises:
            BundleError: the bundle has none.
        """
        if self.manifest.language is None:
            raise BundleError(
                f"{self.path} has no language model: it encodes and decodes only; export with --llm to "
                "add one"
            )
        return self.manifest.language

    @property
    def language_model(self) -> Path:
        """The GGUF file."""
        return self.path / self.language.file

    @property
    def diffusion(self) -> Diffusion:
        """The diffusion's section of the manifest.

        Raises:
            BundleError: the bundle has none.
        """
        if self.manifest.diffusion is None:
            raise BundleError(
                f"{self.path} has no diffusion and cannot make pictures; export with --diffusion to add one"
            )
        return self.manifest.diffusion

    @classmethod
    def open(cls, path: str | Path | None = None) -> Bundle:
        """Read and check a bundle, by its folder or by the name it was added under; by default the embedded
        one.

        Checked are the manifest, the files' sizes, the headers of graphs and language model, and, of small
        bundles, hashes. What passed is remembered as long as the file does not change.

        Raises:
            BundleError: no bundle there, or a file is missing, resized, changed, broken, unlisted, or not a
                plain file.
        """
        bundle = cls.read(EMBEDDED if path is None else find(path))
        try:
            bundle._check_files()
            bundle._check_contents()
        except SeedEdgeError:
            raise
        except OSError as error:
            raise BundleError(
                f"{error.filename} cannot be read ({error.strerror}); look at its permissions"
            ) from error
        return bundle

    @classmethod
    def read(cls, folder: Path) -> Bundle:
        """Read the manifest of a folder; no other file is checked.

        Raises:
            BundleError: there is none, or it is damaged.
        """
        text = _read_manifest(folder / MANIFEST)
        try:
            return cls(folder, Manifest.from_json(text))
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from None

    def _check_files(self) -> None:
        present = {entry.name: entry for entry in os.scandir(self.path)}
        for name, expected in self.manifest.files.items():
            entry = present.pop(name, None)
            if entry is None:
                raise BundleNotFoundError(
                    f"{self.path / name} is missing; copy the bundle again or export again"
                )
            if not entry.is_file(follow_symlinks=False):
                raise BundleError(f"{self.path / name} is a link or no plain file; a bundle holds real files")
            size = entry.stat(follow_symlinks=False).st_size
            if size != expected.size:
                raise BundleError(
                    f"{self.path / name} has {size:,} bytes, the manifest says {expected.size:,}; copy "
                    "or export it again"
                )
        present.pop(MANIFEST, None)
        if present:
            raise BundleError(
                f"{self.path / min(present)} is not listed in {MANIFEST}; remove it from the bundle"
            )

    def _check_contents(self) -> None:
        """Check headers, and the hashes of small bundles; a file that passed and did not change is not read
        again.
        """
        checked = Checked()
        small = sum(entry.size for entry in self.manifest.files.values()) <= HASH_LIMIT
        for name, expected in self.manifest.files.items():
            path = self.path / name
            if not checked.has(path, HEADER):
                check_header(path)
                checked.add(path, HEADER)
            if small and not checked.has(path, expected.sha256):
                self._check_hash(name, expected)
                checked.add(path, expected.sha256)
        checked.save()

    def check_hashes(self) -> None:
        """Compare every file's SHA-256 with the manifest's.

        Raises:
            BundleError: a file differs; it is named.
        """
        for name, expected in self.manifest.files.items():
            self._check_hash(name, expected)

    def _check_hash(self, name: str, expected: FileEntry) -> None:
        if sha256(self.path / name) != expected.sha256:
            raise BundleError(
                f"{self.path / name} is not the file that was exported; copy or export it again"
            )


def find(path: str | Path) -> Path:
    """Folder of a bundle: a folder itself, or a name under which one was added.

    Raises:
        BundleError: it is neither.
    """
    if Path(path).is_dir():
        return Path(path)
    name = str(path)
    if name == EMBEDDED.name:
        return EMBEDDED
    if BUNDLE_NAME.fullmatch(name) and bundle_folder(name).is_dir():
        return bundle_folder(name)
    known = ", ".join([EMBEDDED.name, *bundle_names()])
    raise BundleNotFoundError(
        f"{path}: no such bundle; give the folder that `seed-edge export` wrote, or one of: {known}"
    )


def check_header(path: Path) -> None:
    """Refuse a file whose header breaks the rules of its kind, before a native library reads it.

    Raises:
        BundleError: it does; other kinds than graphs and language models are let through.
    """
    if path.suffix == ".gguf":
        GgufHeader.read(path)
    elif path.suffix == ".onnx":
        OnnxHeader.read(path).refuse_what_bundles_never_hold(path)


def _read_manifest(path: Path) -> str:
    if path.is_symlink():
        raise BundleError(f"{path} is a link; a bundle holds real files")
    try:
        if path.stat().st_size > MANIFEST_LIMIT:
            raise BundleError(f"{path} is over {MANIFEST_LIMIT:,} bytes; this is no manifest")
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise BundleNotFoundError(f"{path} is missing; this folder is no bundle") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read ({error})") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry_for(path: Path) -> FileEntry:
    """The manifest's entry of a file."""
    return FileEntry(path.stat().st_size, sha256(path))


def add(source: Bundle, name: str, replace: bool = False) -> Bundle:
    """Copy a bundle to the user's folder of bundles, where it is found by name, after a check of all hashes.

    Raises:
        BundleError: a file is not the one that was exported, the name is taken or is none, or the disk is too
            small.
    """
    folder = bundle_folder(name)
    if name == EMBEDDED.name:
        raise BundleError(f"{name} is the name of the embedded bundle; choose another")
    check_replaceable_bundle(folder, replace)
    check_not_around(folder, [source.path], "--name", BundleError)
    source.check_hashes()
    needed = sum(entry.size for entry in source.manifest.files.values())
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise BundleError(f"{folder.parent}: {source.path} takes {needed:,} bytes, {free:,} are free")
    with staging(folder, replace) as staged:
        for file in [MANIFEST, *source.manifest.files]:
            shutil.copyfile(source.path / file, staged / file)
    return Bundle.open(folder)


def remove(name: str) -> Path:
    """Delete a bundle that was added; return the path it had.

    Raises:
        BundleError: there is none of that name.
    """
    folder = bundle_folder(name)
    if not os.path.lexists(folder):
        raise BundleError(
            f"{name}: no such bundle in {folder.parent}; there are: {', '.join(bundle_names()) or 'none'}"
        )
    foreign = reason_to_keep(folder)
    if foreign is not None:
        raise BundleError(
            f"{folder} is not removed: {foreign}; look at it, and remove it yourself if it can go"
        )
    _discard(folder)
    return folder


@contextmanager
def staging(out: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends without an error.

    Every file is flushed to disk before the rename. An error or Ctrl-C removes the folder.

    Args:
        replace: an existing bundle at `out` is replaced; anything else there is never touched.

    Raises:
        BundleError: `out` exists and may not be replaced, or its parent cannot be written.
    """
    check_replaceable_bundle(out, replace)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = create_temporary_folder(out)
    except OSError as error:
        raise BundleError(
            f"{out.parent} cannot be written ({error.strerror}); choose another --output"
        ) from error
    try:
        yield folder
        publish(folder, out, replace)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_replaceable_bundle(out: Path, replace: bool) -> None:
    """Refuse an output path that exists, unless it is a bundle and `replace` is set.

    Raises:
        BundleError: it is.
    """
    try:
        out.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise BundleError(f"{out} cannot be written ({error.strerror}); choose another --output") from error
    foreign = reason_to_keep(out)
    if foreign is not None:
        raise BundleError(f"{out} exists already, and {foreign}; choose another --output")
    if not replace:
        raise BundleError(f"{out} exists already; use --overwrite, or another --output")


def reason_to_keep(folder: Path) -> str | None:
    """What in a folder is not a bundle's, so that it is neither replaced nor deleted; None where all of it
    is.

    A bundle that is damaged, or of another version, is one still: its manifest says which files are its own.
    """
    if folder.is_symlink():
        return "it is a link"
    if not folder.is_dir():
        return "it is no folder, so no bundle"
    try:
        listed = _listed_in(folder / MANIFEST)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except BundleError as error:
        return f"it is no bundle ({error})"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    for entry in entries:
        if entry.name not in listed:
            return f"{entry.name} in it is no file of the bundle"
        if not entry.is_file(follow_symlinks=False):
            return f"{entry.name} in it is no plain file"
    return None


def _listed_in(path: Path) -> set[str]:
    """Names of a bundle's files by its manifest, and the manifest's own; for manifests of any version.

    Raises:
        BundleError: this is no manifest.
    """
    if path.is_symlink():
        raise BundleError(f"{path.name} is a link")
    record = read_json(path, MANIFEST_LIMIT, BundleError)
    files = record.get("files") if isinstance(record, dict) and type(record.get("format")) is int else None
    if not isinstance(files, dict) or not all(_is_entry(entry) for entry in files.values()):
        raise BundleError(f"{path.name} is not the manifest of a bundle")
    return {MANIFEST, *files}


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and entry.keys() == {"size", "sha256"} and isinstance(entry["sha256"], str)


def _discard(folder: Path) -> None:
    """Delete a bundle, file by file, so that what is put into it at this moment is not lost.

    Raises:
        BundleError: something else is in it now; it stays, under the name that is told.
    """
    outer = create_temporary_folder(folder)
    doomed = outer / folder.name
    os.replace(folder, doomed)  # gone at once, however long the rest takes
    if reason_to_keep(doomed) is not None:
        raise BundleError(f"{folder} was changed while it was to be deleted; it is in {doomed} now")
    for name in _listed_in(doomed / MANIFEST):
        (doomed / name).unlink(missing_ok=True)
    doomed.rmdir()
    outer.rmdir()


def publish(folder: Path, out: Path, replace: bool = False) -> None:
    """Flush every file of `folder` to disk and give it the name `out`, in place of a bundle that may be
    there.

    Raises:
        BundleError: what is at `out` now may not be replaced.
    """
    for name in os.listdir(folder):
        _flush(folder / name)
    _flush(folder)
    check_replaceable_bundle(out, replace)
    if out.exists():
        _discard(out)
    try:
        os.replace(folder, out)
    except OSError as error:
        raise BundleError(f"{out} cannot be written ({error.strerror}); choose another --output") from error
    _flush(out.parent)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
