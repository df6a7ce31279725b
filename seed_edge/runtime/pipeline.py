"""The Python API: captions, answers, drawings and codes from one bundle. Start reading here.

`SeedEdge` gets its methods for text from `text_methods.py` and those for drawings from `drawing_methods.py`.
These delegate to `captioning.py` and `drawing.py`, which work on the open parts in `engine.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seed_edge.bundle import Bundle
from seed_edge.errors import CodesError
from seed_edge.manifest import Sampling
from seed_edge.preprocess import ImageSource, as_image, image_list
from seed_edge.runtime.captioning import Captioner, check_seed
from seed_edge.runtime.decoders import OnLatents, Progress
from seed_edge.runtime.drawing import Codes, ImageGenerator, check_text
from seed_edge.runtime.drawing_methods import DrawingMethods
from seed_edge.runtime.engine import Engine
from seed_edge.runtime.onnx_session import Device, choose_device
from seed_edge.runtime.text_methods import TextMethods
from seed_edge.runtime.unclip import DiffusionOptions


class SeedEdge(TextMethods, DrawingMethods):
    """An open bundle. Each of its parts is opened when it is first used.

    Threads may share it; a lock serializes calls. A forked process cannot use it, because it lacks the
    threads of the native libraries.
    """

    def __init__(
        self, bundle: Bundle, device: Device, *, memory_limit: int | None = None, low_memory: bool = False
    ) -> None:
        """See `seed_edge.load`."""
        self.engine = Engine(bundle, device, memory_limit=memory_limit, low_memory=low_memory)
        self.captioner, self.generator = Captioner(self.engine), ImageGenerator(self.engine)

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        device: str = "auto",
        memory_limit: int | None = None,
        low_memory: bool = False,
    ) -> SeedEdge:
        """See `seed_edge.load`."""
        return cls(
            Bundle.open(bundle), choose_device(device), memory_limit=memory_limit, low_memory=low_memory
        )

    @property
    def bundle(self) -> Bundle:
        """The bundle: its path and its manifest."""
        return self.engine.bundle

    @property
    def device(self) -> str:
        """Where the graphs run, and why: `cpu (no NVIDIA driver found)`."""
        return self.engine.device

    def memory_plan(self) -> list[str]:
        """Lines of text: the memory of each part, and the free memory."""
        return self.engine.parts.plan()

    def close(self) -> None:
        """Free all open parts. The object stays usable: a part is opened again when it is needed."""
        self.engine.close()

    def __enter__(self) -> SeedEdge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def encode(self, images: Sequence[ImageSource] | NDArray[np.uint8]) -> NDArray[np.int64]:
        """Encode images as codes.

        Args:
            images: a list of images as in `caption`, or an array (count, height, width, 3) of uint8.

        Returns:
            (len(images), codes_per_image), each in [0, codebook_size).

        Raises:
            ImageError: `images` is empty or a single image, or one cannot be read.
        """
        pictures = image_list(images, "images")
        with self.engine.locked():
            return self.engine.images.encode([as_image(picture) for picture in pictures])

    def draw_codes(
        self,
        prompt: str,
        *,
        seed: int = 0,
        negative: str | None = None,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.int64]:
        """Codes (codes_per_image,) of a prompt; see `draw`.

        Args:
            negative: negative prompt; ignored where a diffusion follows, which it guides instead.
            progress: called with the number of codes done and the total.
        """
        check_seed(seed)
        check_text(prompt, "prompt")
        with self.engine.locked():
            best: NDArray[np.int64] = self.generator.draw_candidates(
                prompt, seed, negative, sampling, progress
            )[0]
        return best

    def edit_codes(
        self,
        codes: Codes,
        change: str,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.int64]:
        """Codes (codes_per_image,) of an image, given as codes, changed as `change` says; see `edit` and
        `draw_codes`.
        """
        check_seed(seed)
        with self.engine.locked():
            return self.generator.edit_codes(codes, change, seed, sampling, progress)

    def decode(
        self,
        codes: Codes,
        *,
        seed: int = 0,
        options: DiffusionOptions | None = None,
        negative: Codes | None = None,
        progress: Progress | None = None,
        on_latents: OnLatents | None = None,
    ) -> Image.Image:
        """Decode codes (codes_per_image,) as an image of `output_size` pixels square.

        Args:
            seed: of a diffusion's noise; decoders of kind `pixels` give the same image for all seeds.
            options: of the diffusion; by default the manifest's.
            negative: codes that the diffusion is guided away from.
            progress: called with the number of diffusion steps done and the total.
            on_latents: called with the diffusion's latents (1, channels, size, size), which `decode_latents`
                accepts.

        Raises:
            CodesError: wrong count, or a code outside the codebook.
        """
        check_seed(seed)
        checked = self.bundle.manifest.codes.check(codes)[None]
        with self.engine.locked():
            return self.generator.decode(checked, seed, options, negative, progress, on_latents)[0]

    def decode_batch(
        self,
        codes: Sequence[Codes] | NDArray[np.int64],
        *,
        seed: int = 0,
        options: DiffusionOptions | None = None,
    ) -> list[Image.Image]:
        """Decode codes (count, codes_per_image) as images; see `decode`. Each image is what `decode` gives
        for its codes.
        """
        check_seed(seed)
        space = self.bundle.manifest.codes
        if len(codes) and np.ndim(codes[0]) != 1:
            raise CodesError("codes must be those of several images: (count, codes_per_image); write [codes]")
        checked = [space.check(each) for each in codes]
        with self.engine.locked():
            return [self.generator.decode(each[None], seed, options)[0] for each in checked]

    def decode_latents(self, latents: NDArray[np.float32], *, tiled: bool | None = None) -> Image.Image:
        """Decode a diffusion's latents (1, channels, size, size) as an image.

        Args:
            tiled: decode in tiles, in less memory; None decides by the free memory.

        Raises:
            BundleError: the bundle has no diffusion, or one with latents of another shape.
        """
        with self.engine.locked():
            return self.engine.images.decoder.decode_latents(latents, tiled)[0]
