"""From a trained run to a bundle: export, compare, write the manifest, rename into place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seed_edge.bundle import entry_for, staging
from seed_edge.errors import CheckpointError
from seed_edge.export.gguf import LlamaFolder, write_gguf
from seed_edge.export.onnx import export_image_tokenizer
from seed_edge.export.parity import image_parity, language_parity
from seed_edge.graphs import decoder_graph, encoder_graph
from seed_edge.manifest import DECODER, ENCODER, FORMAT, MANIFEST, Language, Manifest, Sampling, Source
from seed_edge.models.checkpoints import load_image_tokenizer
from seed_edge.models.train.llm import CONTEXT, LLM_FOLDER, PROMPTS
from seed_edge.models.trunk import IMAGE_MEAN, IMAGE_STD
from seed_edge.preprocess import Preprocessing, open_image

LANGUAGE_MODEL = "llm.gguf"
PARITY_IMAGES = 8


@dataclass(frozen=True)
class ExportOptions:
    """What an export may be told."""

    name: str
    weight_type: str = "Q8_0"
    """GGUF type of the language model's matrices."""
    image_weights: str = "fp16"
    """How the graphs store weights; they compute in fp32."""
    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.9
    max_caption_ids: int = 40
    licence: str = ""
    sources: Path | None = None
    """JSON list of objects with name, licence and role: what the weights were made from."""
    replace: bool = False


def export_bundle(run: Path, out: Path, options: ExportOptions, photos: list[Path], report: Callable[[str], None]) -> Manifest:
    """Export the run in `run` to a bundle at `out`, which appears only when every comparison has passed.

    Args:
        photos: images to compare codes on, beside smooth random ones.

    Raises:
        CheckpointError: a part is missing or does not fit the others.
        ParityError: an exported file does not give the checkpoint's numbers.
    """
    with staging(out, options.replace) as folder:
        report("image tokenizer: loading")
        model = load_image_tokenizer(run)
        geometry = model.geometry
        preprocessing = Preprocessing(geometry.image_size, "bilinear", IMAGE_MEAN, IMAGE_STD)
        llama = LlamaFolder.open(run / LLM_FOLDER)
        vocab = llama.vocab(geometry.num_queries)
        if vocab.codebook_size != geometry.codebook_size:
            raise CheckpointError(
                f"{llama.path / 'added_tokens.json'} names {vocab.codebook_size} codes, the image tokenizer has "
                f"{geometry.codebook_size}; the two parts come from different runs"
            )
        report("image tokenizer: exporting two graphs")
        specs = (
            encoder_graph(geometry.image_size, geometry.num_queries),
            decoder_graph(geometry.num_queries, geometry.output_size),
        )
        export_image_tokenizer(model, specs, (folder / ENCODER, folder / DECODER), options.image_weights)
        values = smooth_images(PARITY_IMAGES, geometry.image_size)
        if photos:
            values = np.concatenate([preprocessing([open_image(photo) for photo in photos]), values])
        images = image_parity(model, folder / ENCODER, folder / DECODER, options.image_weights, values)
        report(f"image tokenizer: {images['equal_codes']:.1%} of codes equal, pixels within {images['largest_pixel_error']}")
        report("language model: exporting")
        write_gguf(llama, vocab, folder / LANGUAGE_MODEL, options.weight_type, options.name)
        language = language_parity(llama.path, folder / LANGUAGE_MODEL, options.weight_type, vocab, CONTEXT)
        report(f"language model: divergence {language['logits_kl']} nats, same argmax {language['same_argmax']:.1%}")
        manifest = Manifest(
            format=FORMAT,
            name=options.name,
            kind="pixels",
            preprocessing=preprocessing,
            codes=vocab.codes,
            output_size=geometry.output_size,
            language=Language(
                file=LANGUAGE_MODEL,
                vocab=vocab,
                prompts=PROMPTS,
                sampling=Sampling(options.temperature, options.top_k, options.top_p),
                context_length=CONTEXT,
                max_caption_ids=options.max_caption_ids,
            ),
            diffusion=None,
            files={path.name: entry_for(path) for path in sorted(folder.iterdir())},
            parity={
                "image_weights": options.image_weights,
                "weight_type": options.weight_type,
                "images": images,
                "language": language,
            },
            sources=read_sources(options.sources) if options.sources else (),
            licence=options.licence,
        )
        (folder / MANIFEST).write_text(manifest.to_json(), "utf-8")
    report(f"bundle: {sum(entry.size for entry in manifest.files.values()):,} bytes in {out}")
    return manifest


def read_sources(path: Path) -> tuple[Source, ...]:
    """Read a list of sources.

    Raises:
        CheckpointError: the file is missing or is no such list.
    """
    try:
        return tuple(Source(**fields) for fields in json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} must be a JSON list of objects with name, licence and role ({error})") from error


def smooth_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Random smooth pictures, normalised: (count, 3, size, size) float32 in about [-1, 1]."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    squares = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        )
        for _ in range(count)
    ]
    return Preprocessing(size, "bilinear", IMAGE_MEAN, IMAGE_STD).normalise(np.stack(squares))
