"""See and draw with one small model, offline: images become codes a LLaMA reads and writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seed_edge import native

if TYPE_CHECKING:
    from seed_edge.runtime.pipeline import SeedEdge

__all__ = ["__version__", "load"]
__version__ = "0.1.0"
native.configure()


def load(
    bundle: str | Path | None = None,
    *,
    device: str = "auto",
    memory_limit: int | None = None,
    low_memory: bool = False,
) -> SeedEdge:
    """Open a bundle.

    Args:
        bundle: path of a bundle directory; by default the one inside this package.
        device: `auto`, `cpu` or `cuda`.
        memory_limit: most bytes the process may take; by default, parts make room for one another where memory is short.
        low_memory: keep one part open at a time: less memory, and slower where parts alternate.

    Returns:
        An object with `caption`, `draw`, `encode` and `decode`; close it, or use it in a `with` block.

    Raises:
        BundleError: there is no bundle at that path, or it is damaged.
        DeviceError: `device` is `cuda` and cannot be used.
    """
    from seed_edge.runtime.pipeline import SeedEdge

    return SeedEdge.load(bundle, device=device, memory_limit=memory_limit, low_memory=low_memory)
