"""Caption and draw images offline with one small model: images become codes that a LLaMA reads and writes.

`load` opens a bundle. The classes of the API and all errors can be imported from here; each is loaded when it
is first used, so that `import seed_edge` stays light.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from seed_edge import native

if TYPE_CHECKING:
    from seed_edge.errors import BundleError as BundleError
    from seed_edge.errors import BundleNotFoundError as BundleNotFoundError
    from seed_edge.errors import CheckpointError as CheckpointError
    from seed_edge.errors import CheckpointNotFoundError as CheckpointNotFoundError
    from seed_edge.errors import CodesError as CodesError
    from seed_edge.errors import CodesNotFoundError as CodesNotFoundError
    from seed_edge.errors import DataError as DataError
    from seed_edge.errors import DataNotFoundError as DataNotFoundError
    from seed_edge.errors import DeviceError as DeviceError
    from seed_edge.errors import ImageError as ImageError
    from seed_edge.errors import ImageNotFoundError as ImageNotFoundError
    from seed_edge.errors import MemoryShortError as MemoryShortError
    from seed_edge.errors import ParityError as ParityError
    from seed_edge.errors import PromptError as PromptError
    from seed_edge.errors import SeedEdgeError as SeedEdgeError
    from seed_edge.manifest import Sampling as Sampling
    from seed_edge.runtime.captioning import Answer as Answer
    from seed_edge.runtime.captioning import Caption as Caption
    from seed_edge.runtime.captioning import ScoredText as ScoredText
    from seed_edge.runtime.captioning import Token as Token
    from seed_edge.runtime.conversation import Conversation as Conversation
    from seed_edge.runtime.drawing import Drawing as Drawing
    from seed_edge.runtime.pipeline import SeedEdge as SeedEdge
    from seed_edge.runtime.unclip import DiffusionOptions as DiffusionOptions

__version__ = "0.1.0"

_MODULES = {
    "Answer": "seed_edge.runtime.captioning",
    "Caption": "seed_edge.runtime.captioning",
    "Conversation": "seed_edge.runtime.conversation",
    "DiffusionOptions": "seed_edge.runtime.unclip",
    "Drawing": "seed_edge.runtime.drawing",
    "Sampling": "seed_edge.manifest",
    "ScoredText": "seed_edge.runtime.captioning",
    "SeedEdge": "seed_edge.runtime.pipeline",
    "Token": "seed_edge.runtime.captioning",
}
"""Module of each class that is imported on first use; a name that ends with `Error` comes from
`seed_edge.errors`.
"""

__all__ = [
    "Answer",
    "BundleError",
    "BundleNotFoundError",
    "Caption",
    "CheckpointError",
    "CheckpointNotFoundError",
    "CodesError",
    "CodesNotFoundError",
    "Conversation",
    "DataError",
    "DataNotFoundError",
    "DeviceError",
    "DiffusionOptions",
    "Drawing",
    "ImageError",
    "ImageNotFoundError",
    "MemoryShortError",
    "ParityError",
    "PromptError",
    "Sampling",
    "ScoredText",
    "SeedEdge",
    "SeedEdgeError",
    "Token",
    "__version__",
    "load",
]
native.configure()


def __getattr__(name: str) -> object:
    """Import a public class when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'seed_edge' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_MODULES.get(name, "seed_edge.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    bundle: str | Path | None = None,
    *,
    device: str = "auto",
    memory_limit: int | None = None,
    low_memory: bool = False,
) -> SeedEdge:
    """Open a bundle.

    Args:
        bundle: path of a bundle directory, or the name of one that was added; by default the one inside this
            package.
        device: `auto`, `cpu` or `cuda`.
        memory_limit: upper limit of this process's memory, in bytes; by default parts are closed where memory
            is short.
        low_memory: keep only one part open at a time: less memory, slower where parts alternate.

    Returns:
        An object with `caption`, `ask`, `draw`, `edit`, `encode` and `decode`; close it, or use it in a
        `with` block.

    Raises:
        BundleNotFoundError: there is no bundle at that path; also a `FileNotFoundError`.
        BundleError: the bundle is damaged.
        DeviceError: `device` is unknown, or it is `cuda` and cannot be used.
    """
    from seed_edge.runtime.pipeline import SeedEdge

    return SeedEdge.load(bundle, device=device, memory_limit=memory_limit, low_memory=low_memory)
