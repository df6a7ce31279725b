"""The manifest of a bundle: every parameter the runtime needs, and the names of its files.

This module reads and writes JSON, but no files. A `Manifest` is checked when it is constructed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

from seed_edge.display import printable
from seed_edge.errors import BundleError
from seed_edge.graphs import (
    GraphSpec,
    embedding_decoder_graph,
    encoder_graph,
    pixel_decoder_graph,
    unet_graph,
    vae_graph,
)
from seed_edge.inputs import parse_json
from seed_edge.preprocess import FILTERS, MAX_VIEWS, Preprocessing
from seed_edge.prompts import Prompts
from seed_edge.strict import StrictReader
from seed_edge.vocab import MAX_VOCAB, CodeSpace, Vocab

log = logging.getLogger("seed_edge")

T = TypeVar("T")
READER = StrictReader(BundleError, "; export again")

FORMAT = 2
"""Version of the manifest's layout; format 1 is still read (`upgrade_manifest`)."""
KINDS = ("pixels", "unclip")
"""Output of decoder.onnx: `pixels`, the image; `unclip`, an image embedding that conditions a diffusion."""

MANIFEST = "manifest.json"
ENCODER = "encoder.onnx"
DECODER = "decoder.onnx"
UNET = "unet.onnx"
VAE = "vae_decoder.onnx"
IMAGE_NOISE = "image_noise.npz"
"""Arrays of a diffusion: noise schedule and normalisation of image embeddings."""
DATA = ".data"
"""Suffix of the file with the weights of a graph, if they are not in the graph."""
MAX_BEAMS = 16
MAX_BEST_OF = 16
MAX_SIDE = 8192
"""Maximum side of a drawn image, in pixels."""
MAX_IMAGE_SIZE = 2048
"""Maximum side of the encoder's input, in pixels."""
MAX_EMBED_DIM = 1 << 16
MAX_CONTEXT = 1 << 18
"""Maximum number of token ids of prompt and answer together."""
MAX_CAPTION_IDS = 4096
MAX_TEMPERATURE, MAX_GUIDANCE = 100.0, 1000.0
MAX_STEPS = 500
"""Maximum number of diffusion steps."""
MAX_LATENT_SIDE, MAX_LATENT_CHANNELS = 512, 64
MAX_DECODED = 16
"""Maximum number of decoder outputs in a self-test."""
MAX_BYTES = 1 << 48
MAX_NAME, MAX_TEXT, MAX_SOURCES = 200, 1 << 16, 1000
"""Maximum characters of a name and of any other text; maximum number of sources."""
SCHEDULER_NAMES = ("pndm", "ddim", "dpm++")
RENAMED_KEYS = {"licence": "license", "tries": "best_of"}
"""Keys of format 1 and their names in format 2."""
HASH = re.compile("[0-9a-f]{64}")
GGUF_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.gguf")


def check_range(name: str, value: float, minimum: float, maximum: float) -> None:
    """Check that a number lies in [minimum, maximum]; NaN does not.

    Raises:
        BundleError: it lies outside; the message has `name`, the value and the range.
    """
    if not minimum <= value <= maximum:
        raise BundleError(f"{name} must be {minimum:g} to {maximum:g}, not {value:.10g}")


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle."""

    size: int
    """Bytes."""
    sha256: str
    """Lower-case hexadecimal."""

    def __post_init__(self) -> None:
        check_range("size of a file", self.size, 0, MAX_BYTES)
        if not HASH.fullmatch(self.sha256):
            raise BundleError(f"sha256 {self.sha256[:70]!r} is not 64 hexadecimal digits; export again")


@dataclass(frozen=True)
class Source:
    """A data set or model that the weights were made from."""

    name: str
    license: str
    role: str


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn from the language model's distribution."""

    temperature: float
    """0 takes the most probable code."""
    top_k: int = 0
    """Number of most probable codes to sample from; 0 for all."""
    top_p: float = 1.0
    """Codes are sampled from the smallest set with this total probability; 1 for all."""
    guidance: float = 1.0
    """Guidance scale of classifier-free guidance; 1 turns guidance off."""
    best_of: int = 1
    """Number of candidates sampled for a prompt, of which the best is used (`runtime.rerank`); edits have
    one.
    """

    def __post_init__(self) -> None:
        check_range("best_of", self.best_of, 1, MAX_BEST_OF)
        check_range("temperature", self.temperature, 0, MAX_TEMPERATURE)
        check_range("top_k", self.top_k, 0, MAX_VOCAB)
        check_range("top_p", self.top_p, math.ulp(0.0), 1)
        check_range("guidance", self.guidance, 1, MAX_GUIDANCE)


@dataclass(frozen=True)
class SelfTest:
    """Outputs of encoder and decoder for a computed test image; see `runtime/selftest.py`."""

    codes: tuple[int, ...]
    decoded: tuple[float, ...]
    """Some values of the decoder's output for these codes."""

    def __post_init__(self) -> None:
        check_range("number of decoded values of the self-test", len(self.decoded), 1, MAX_DECODED)
        if not all(map(math.isfinite, self.decoded)):
            raise BundleError("a decoded value of the self-test is not finite; export again")


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a part of a bundle on a CPU, in bytes."""

    held: int
    """Resident while the part is open."""
    opening: int
    """Peak while the part is opened."""
    running: int
    """Peak while the part processes one image."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            check_range(f"memory: {name}", value, 0, MAX_BYTES)


@dataclass(frozen=True)
class Language:
    """The language model of a bundle."""

    file: str
    """Name of the GGUF file."""
    vocab: Vocab
    prompts: Prompts
    sampling: Sampling
    """Default sampling of codes."""
    context_length: int
    """Maximum number of token ids of prompt and answer together."""
    max_caption_ids: int
    caption_beams: int = 1
    """Beam width of captions; 1 is greedy decoding."""
    caption_views: int = 1
    """Number of views of an image that a caption has to fit; see `Preprocessing.views`."""

    def __post_init__(self) -> None:
        check_range("caption_beams", self.caption_beams, 1, MAX_BEAMS)
        check_range("caption_views", self.caption_views, 1, MAX_VIEWS)
        check_range("context_length", self.context_length, self.vocab.codes_per_image + 3, MAX_CONTEXT)
        check_range("max_caption_ids", self.max_caption_ids, 1, min(MAX_CAPTION_IDS, self.context_length))
        if not GGUF_NAME.fullmatch(self.file):
            raise BundleError(
                f"language model file {self.file!r} is not a plain .gguf file name; export again"
            )


@dataclass(frozen=True)
class Diffusion:
    """The diffusion of a bundle of kind `unclip`."""

    scheduler: str
    """Default scheduler, one of `SCHEDULER_NAMES`; the reference uses `pndm`."""
    steps: int
    guidance: float
    latent_channels: int
    latent_size: int
    """Side of the latents; the side of the image is this times the VAE's scale factor."""
    steps_offset: int
    """Added to the evenly spaced timesteps."""
    final_alpha_one: bool
    """Whether the cumulative alpha after the last step is 1, that is, without noise."""

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULER_NAMES:
            raise BundleError(
                f"scheduler {self.scheduler[:40]!r} is unknown; known are {', '.join(SCHEDULER_NAMES)}"
            )
        check_range("steps", self.steps, 2, MAX_STEPS)
        check_range("guidance", self.guidance, 1, MAX_GUIDANCE)
        check_range("latent_channels", self.latent_channels, 1, MAX_LATENT_CHANNELS)
        check_range("latent_size", self.latent_size, 1, MAX_LATENT_SIDE)
        check_range("steps_offset", self.steps_offset, 0, 1000)


@dataclass(frozen=True)
class Manifest:
    """Parameters of a bundle, its files, and where its weights come from."""

    format: int
    name: str
    kind: str
    preprocessing: Preprocessing
    codes: CodeSpace
    output_size: int
    """Side of a drawn image in pixels; 0 if the bundle cannot draw."""
    image_embed_dim: int
    """Width of the image embeddings of the decoder; 0 for kind `pixels`."""
    language: Language | None
    """None for a bundle that can encode and decode, but not caption or draw."""
    diffusion: Diffusion | None
    """None for a bundle of kind `pixels`, and for a bundle of kind `unclip` that cannot decode."""
    files: dict[str, FileEntry]
    self_test: SelfTest | None = None
    """Outputs measured on the machine that exported the bundle."""
    memory: dict[str, MemoryUse] = field(default_factory=dict)
    """Memory of each graph, measured at export, by file name."""
    parity: dict[str, Any] = field(default_factory=dict)
    """Comparison of exported files with the checkpoint, measured at export."""
    sources: tuple[Source, ...] = ()
    license: str = ""
    """License of the weights."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise BundleError(
                f"manifest format {self.format}, this version reads {FORMAT}; export again or update"
            )
        for name, text in (("name", self.name), ("license", self.license)):
            check_range(f"characters of {name}", len(text), 0, MAX_NAME if name == "name" else MAX_TEXT)
        check_range("number of sources", len(self.sources), 0, MAX_SOURCES)
        if self.kind not in KINDS:
            raise BundleError(
                f"bundle kind {self.kind!r} is unknown (known: {', '.join(KINDS)}); update seed-edge"
            )
        if self.preprocessing.resize_filter not in FILTERS:
            raise BundleError(f"resize filter {self.preprocessing.resize_filter!r} is unknown; export again")
        check_range("image_size", self.preprocessing.image_size, 1, MAX_IMAGE_SIZE)
        for value in self.preprocessing.mean:
            check_range("mean", value, -100, 100)
        for value in self.preprocessing.std:
            check_range("std", value, 1e-6, 100)
        draws = self.kind == "pixels" or self.diffusion is not None
        check_range("output_size", self.output_size, 1 if draws else 0, MAX_SIDE)
        check_range(
            "image_embed_dim",
            self.image_embed_dim,
            *((0, 0) if self.kind == "pixels" else (1, MAX_EMBED_DIM)),
        )
        if self.diffusion and (
            self.output_size < self.diffusion.latent_size or self.output_size % self.diffusion.latent_size
        ):
            raise BundleError(
                f"output_size {self.output_size} is not a multiple of latent_size "
                f"{self.diffusion.latent_size}; export again"
            )
        if self.self_test and len(self.self_test.codes) != self.codes.codes_per_image:
            raise BundleError(
                f"the self-test has {len(self.self_test.codes)} codes, an image has "
                f"{self.codes.codes_per_image}; export again"
            )
        if self.language and self.language.vocab.codes != self.codes:
            raise BundleError("the vocabulary and the image tokenizer have different codes; export again")
        if self.diffusion and self.kind != "unclip":
            raise BundleError(f"a bundle of kind {self.kind!r} cannot have a diffusion; export again")
        required = self.required_files()
        optional = {name + DATA for name in required if name.endswith(".onnx")}
        wrong = sorted((required - set(self.files)) | (set(self.files) - required - optional))
        if wrong:
            expected = ", ".join(sorted(required))
            raise BundleError(f"manifest lists the wrong files ({', '.join(wrong)}); it must list {expected}")
        unknown = sorted(set(self.memory) - set(self.files))
        if unknown:
            raise BundleError(
                f"manifest has the memory of {', '.join(unknown)}, but does not list the file; export again"
            )

    def required_files(self) -> set[str]:
        """Names of the required files."""
        files = {ENCODER, DECODER}
        files |= {self.language.file} if self.language else set()
        return files | ({UNET, VAE, IMAGE_NOISE} if self.diffusion else set())

    def graphs(self) -> dict[str, GraphSpec]:
        """Inputs and outputs of each graph, by file name."""
        count, dim = self.codes.codes_per_image, self.image_embed_dim
        pixels = self.kind == "pixels"
        graphs = {
            ENCODER: encoder_graph(self.preprocessing.image_size, count),
            DECODER: pixel_decoder_graph(count, self.output_size)
            if pixels
            else embedding_decoder_graph(count, dim),
        }
        if self.diffusion is not None:
            channels, size = self.diffusion.latent_channels, self.diffusion.latent_size
            graphs |= {UNET: unet_graph(channels, size, dim), VAE: vae_graph(channels)}
        return graphs

    def to_json(self) -> str:
        """Text of `manifest.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse `manifest.json`.

        Raises:
            BundleError: not JSON, or a field is missing, unknown, or of the wrong type.
        """
        value = upgrade_manifest(parse_json(text, MANIFEST, BundleError))
        try:
            manifest = parse(cls, value, MANIFEST)
        except BundleError as error:
            raise BundleError(printable(str(error))) from None
        return manifest


def upgrade_manifest(value: Any) -> Any:
    """Convert the JSON value of a manifest of format 1 to the current format; other values are returned
    unchanged.

    A key is renamed only where format 1 had it, so that an unknown key still raises an error.
    """
    if not isinstance(value, dict) or type(value.get("format")) is not int or value["format"] != 1:
        return value
    log.info(
        "%s has format 1 and is read as format %d; export the bundle again to update it", MANIFEST, FORMAT
    )
    result = _rename_keys(value) | {"format": FORMAT}
    if isinstance(result.get("sources"), list):
        result["sources"] = [_rename_keys(source) for source in result["sources"]]
    language = result.get("language")
    if isinstance(language, dict) and "sampling" in language:
        result["language"] = language | {"sampling": _rename_keys(language["sampling"])}
    return result


def _rename_keys(value: Any) -> Any:
    """A JSON object with the keys of `RENAMED_KEYS` renamed, in the same order; other values unchanged."""
    if not isinstance(value, dict):
        return value
    names = {old: new for old, new in RENAMED_KEYS.items() if new not in value}
    return {names.get(key, key): item for key, item in value.items()}


def parse(kind: type[T], value: Any, where: str) -> T:
    """Parse a JSON value of a manifest as the dataclass `kind`.

    Raises:
        BundleError: a key is unknown or missing, or a value is of the wrong type.
    """
    return READER.read(kind, value, where)
