"""WebDataset tars: samples whose files share a key, `KEY.webp` beside `KEY.json`."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from seed_edge.atomic import replacing
from seed_edge.display import printable
from seed_edge.errors import DataError, SeedEdgeError
from seed_edge.inputs import open_regular

IMAGE_TYPES = ("webp", "png", "jpg", "jpeg")


class ShardWriter:
    """Writes samples to a tar, which is renamed into place when it is complete."""

    def __init__(self, path: Path) -> None:
        self._stack = ExitStack()
        partial = self._stack.enter_context(replacing(path))
        self._tar = self._stack.enter_context(tarfile.open(partial, "w"))  # noqa: SIM115 (closed by the stack)

    def __enter__(self) -> ShardWriter:
        return self

    def write(self, key: str, files: dict[str, bytes]) -> None:
        """Add one sample; `files` maps extension to content."""
        for extension, content in files.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(content)
            self._tar.addfile(info, io.BytesIO(content))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


@dataclass(frozen=True)
class Member:
    """Location of a file within a tar."""

    tar: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Read the content of the file."""
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def list_shard(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield the samples of a tar in order, without reading them: key, and files by extension.

    Raises:
        DataError: the file is missing or not a tar.
    """
    try:
        with open_regular(path, DataError) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            key, files, total_bytes = "", dict[str, Member](), file.seek(0, 2)
            file.seek(0)
            for member in tar:
                name, _, extension = member.name.rpartition(".")
                if not member.isfile():
                    continue
                if member.issparse() or not 0 <= member.size <= total_bytes - member.offset_data:
                    raise DataError(
                        f"{path} cannot be read as a tar ({printable(member.name)} is cut off or "
                        "sparse); create it again"
                    )
                if name != key and files:
                    yield key, files
                    files = {}
                key = name
                files[extension.lower()] = Member(path, member.name, member.offset_data, member.size)
            if files:
                yield key, files
    except SeedEdgeError:
        raise
    except (OSError, tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as a tar ({printable(str(error))}); give WebDataset tars, not compressed"
        ) from error


def read_shard(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the samples of a tar in order: key, and content of its files by extension.

    Raises:
        DataError: the file is missing or not a tar.
    """
    for key, files in list_shard(path):
        yield key, {extension: member.read() for extension, member in files.items()}
