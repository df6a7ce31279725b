"""Bundles: folders with a manifest and the files listed in it.

A bundle is checked before a native library opens any of its files, and appears only when it is complete.
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
from seed_edge.user_dirs import BUNDLE_NAME, CheckCache, bundle_folder, bundle_names

EMBEDDED = Path(__file__).parent / "bundles" / "mini"
"""Folder of the bundle inside this package."""

MANIFEST_LIMIT = 1 << 20
"""Maximum size of a manifest in bytes."""
HASH_LIMIT = 64 << 20
"""Maximum size in bytes of a bundle whose hashes are checked when it is opened; those of larger bundles are
checked by `Bundle.check_hashes`.
"""
HEADER = "header-1"
"""Name and version of the header check in `CheckCache`."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: Manifest

    @property
    def encoder(self) -> Path:
        """Path of the graph from pixels to codes."""
        return self.path / ENCODER

    @property
    def decoder(self) -> Path:
        """Path of the graph from codes to pixels, or to image embeddings."""
        return self.path / DECODER

    @property
    def unet(self) -> Path:
        """Path of the graph of the diffusion."""
        return self.path / UNET

    @property
    def vae(self) -> Path:
        """Path of the graph from latents to pixels."""
        return self.path / VAE

    @property
    def image_noise(self) -> Path:
        """Path of the arrays of the diffusion."""
        return self.path / IMAGE_NOISE

    @property
    def language(self) -> Language:
        """The language model's section of the manifest.

        Raises:
            BundleError: the bundle has no language model.
        """
        if self.manifest.language is None:
            raise BundleError(
                f"{self.path} has no language model: it encodes and decodes only; export with --llm to "
                "add one"
            )
        return self.manifest.language

    @property
    def language_model(self) -> Path:
        """Path of the GGUF file."""
        return self.path / self.language.file

    @property
    def diffusion(self) -> Diffusion:
        """The diffusion's section of the manifest.

        Raises:
            BundleError: the bundle has no diffusion.
        """
        if self.manifest.diffusion is None:
            raise BundleError(
                f"{self.path} has no diffusion and cannot draw images; export with --diffusion to add one"
            )
        return self.manifest.diffusion

    @classmethod
    def open(cls, path: str | Path | None = None) -> Bundle:
        """Open and check a bundle.

        The manifest, the sizes of the files, the headers of graphs and language model, and for small bundles
        the hashes are checked. Results are cached until a file changes.

        Args:
            path: folder of the bundle, or the name of an added one; None for the embedded bundle.

        Raises:
            BundleError: there is no bundle, or a file is missing, of another size, changed, damaged, not
                listed, or not a regular file.
        """
        bundle = cls.read(EMBEDDED if path is None else find(path))
        try:
            bundle._check_files()
            bundle._check_contents()
        except SeedEdgeError:
            raise
        except OSError as error:
            raise BundleError(
                f"{error.filename} cannot be read ({error.strerror}); check its permissions"
            ) from error
        return bundle

    @classmethod
    def read(cls, folder: Path) -> Bundle:
        """Read the manifest in a folder; no other file is checked.

        Raises:
            BundleError: the manifest is missing or damaged.
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
                raise BundleError(
                    f"{self.path / name} is not a regular file; a bundle must not contain links"
                )
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
        """Check headers, and the hashes of small bundles; skip files that passed and did not change."""
        cache = CheckCache()
        small = sum(entry.size for entry in self.manifest.files.values()) <= HASH_LIMIT
        for name, expected in self.manifest.files.items():
            path = self.path / name
            if not cache.has(path, HEADER):
                check_header(path)
                cache.add(path, HEADER)
            if small and not cache.has(path, expected.sha256):
                self._check_hash(name, expected)
                cache.add(path, expected.sha256)
        cache.save()

    def check_hashes(self) -> None:
        """Compare the SHA-256 of every file with that in the manifest.

        Raises:
            BundleError: a file differs.
        """
        for name, expected in self.manifest.files.items():
            self._check_hash(name, expected)

    def _check_hash(self, name: str, expected: FileEntry) -> None:
        if sha256(self.path / name) != expected.sha256:
            raise BundleError(
                f"{self.path / name} is not the file that was exported; copy or export it again"
            )


def find(path: str | Path) -> Path:
    """Return the folder of a bundle, given the folder itself or the name of an added bundle.

    Raises:
        BundleError: there is no such folder, and no bundle of that name.
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
    """Check the header of a graph or language model, before a native library reads the file.

    Raises:
        BundleError: the header is damaged, or breaks a rule. Files of other types are not checked.
    """
    if path.suffix == ".gguf":
        GgufHeader.read(path)
    elif path.suffix == ".onnx":
        OnnxHeader.read(path).check_bundle_rules(path)


def _read_manifest(path: Path) -> str:
    if path.is_symlink():
        raise BundleError(f"{path} is a link; a bundle must not contain links")
    try:
        if path.stat().st_size > MANIFEST_LIMIT:
            raise BundleError(f"{path} is over {MANIFEST_LIMIT:,} bytes, and is not a manifest")
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise BundleNotFoundError(f"{path} is missing; the folder is not a bundle") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read ({error})") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry_for(path: Path) -> FileEntry:
    """Return the entry of a file in the manifest."""
    return FileEntry(path.stat().st_size, sha256(path))


def add(source: Bundle, name: str, replace: bool = False) -> Bundle:
    """Check all hashes of a bundle and copy it to the user's folder of bundles, where it is found by name.

    Args:
        replace: replace an added bundle of that name.

    Raises:
        BundleError: a file is not the one that was exported, the name exists or is invalid, or the disk is
            too small.
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
        raise BundleError(f"{folder.parent}: {source.path} needs {needed:,} bytes, but {free:,} are free")
    with staging(folder, replace) as staged:
        for file in [MANIFEST, *source.manifest.files]:
            shutil.copyfile(source.path / file, staged / file)
    return Bundle.open(folder)


def remove(name: str) -> Path:
    """Delete an added bundle and return its former path.

    Raises:
        BundleError: there is no bundle of that name, or its folder contains other files.
    """
    folder = bundle_folder(name)
    if not os.path.lexists(folder):
        raise BundleError(
            f"{name}: no such bundle in {folder.parent}; added bundles: {', '.join(bundle_names()) or 'none'}"
        )
    reason = reason_to_keep(folder)
    if reason is not None:
        raise BundleError(f"{folder} is not removed: {reason}; check its content, and remove it by hand")
    _delete(folder)
    return folder


@contextmanager
def staging(out: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to `out`, which is renamed to `out` if the block ends without an error.

    Every file is flushed to disk before the rename. An error or Ctrl-C removes the folder.

    Args:
        replace: replace an existing bundle at `out`; anything else there is never changed.

    Raises:
        BundleError: `out` exists and must not be replaced, or its parent cannot be written.
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
    """Check that an output path does not exist, or is a bundle and `replace` is set.

    Raises:
        BundleError: the path must not be replaced.
    """
    try:
        out.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise BundleError(f"{out} cannot be written ({error.strerror}); choose another --output") from error
    reason = reason_to_keep(out)
    if reason is not None:
        raise BundleError(f"{out} already exists, and {reason}; choose another --output")
    if not replace:
        raise BundleError(f"{out} already exists; use --overwrite, or choose another --output")


def reason_to_keep(folder: Path) -> str | None:
    """Return why a folder must not be replaced or deleted; None if it contains only the files of a bundle.

    The bundle may be damaged or of another version, as its manifest lists its files.
    """
    if folder.is_symlink():
        return "it is a link"
    if not folder.is_dir():
        return "it is not a folder"
    try:
        listed = _listed_files(folder / MANIFEST)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except BundleError as error:
        return f"it is not a bundle ({error})"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    for entry in entries:
        if entry.name not in listed:
            return f"{entry.name} in it is not a file of the bundle"
        if not entry.is_file(follow_symlinks=False):
            return f"{entry.name} in it is not a regular file"
    return None


def _listed_files(path: Path) -> set[str]:
    """Return the names of the files that a manifest of any version lists, and of the manifest itself.

    Raises:
        BundleError: the file is not a manifest.
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


def _delete(folder: Path) -> None:
    """Delete the files of a bundle one by one, so that files added by others at this moment are not lost.

    Raises:
        BundleError: the folder now contains other files; it is kept under the name in the message.
    """
    outer = create_temporary_folder(folder)
    moved = outer / folder.name
    os.replace(folder, moved)  # a single step, however long deletion takes
    if reason_to_keep(moved) is not None:
        raise BundleError(f"{folder} was changed during its deletion; it is now in {moved}")
    for name in _listed_files(moved / MANIFEST):
        (moved / name).unlink(missing_ok=True)
    moved.rmdir()
    outer.rmdir()


def publish(folder: Path, out: Path, replace: bool = False) -> None:
    """Flush every file of `folder` to disk and rename it to `out`.

    Args:
        replace: replace an existing bundle at `out`.

    Raises:
        BundleError: `out` exists and must not be replaced, or cannot be written.
    """
    for name in os.listdir(folder):
        _flush(folder / name)
    _flush(folder)
    check_replaceable_bundle(out, replace)
    if out.exists():
        _delete(out)
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
