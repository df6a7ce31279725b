"""Exports checkpoints to a bundle: converts and compares parts, writes the manifest, renames the folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seed_edge.bundle import Bundle, entry_for
from seed_edge.display import shown
from seed_edge.errors import BundleError, CheckpointError
from seed_edge.export.diffusion import UnclipFolder
from seed_edge.export.estimate import (
    Estimate,
    estimate_copies,
    estimate_diffusion,
    estimate_language,
    estimate_tokenizer,
    report_estimates,
)
from seed_edge.export.gguf import LlamaFolder
from seed_edge.export.gguf_quantize import write_as
from seed_edge.export.onnx import export_image_tokenizer
from seed_edge.export.parity import diffusion_parity, image_parity, language_parity, with_measurements
from seed_edge.export.resume import fingerprint, resumable
from seed_edge.graphs import GraphSpec, embedding_decoder_graph, encoder_graph, pixel_decoder_graph
from seed_edge.manifest import (
    DECODER,
    ENCODER,
    FORMAT,
    MANIFEST,
    Diffusion,
    Language,
    Manifest,
    Sampling,
    Source,
    parse,
)
from seed_edge.models.checkpoints import (
    IMAGE_TOKENIZER_FILE,
    find_seed_tokenizer,
    is_run,
    load_image_tokenizer,
    load_seed_tokenizer,
)
from seed_edge.models.config import load_geometry
from seed_edge.models.efficientnet import preprocessing_of
from seed_edge.models.fields import Fields, read_checked_json
from seed_edge.models.image_tokenizer import PixelTokenizer, SeedTokenizer
from seed_edge.models.llama_files import LLM_FOLDER, TEMPLATE
from seed_edge.output_checks import check_not_around
from seed_edge.preprocess import CLIP_MEAN, CLIP_STD, Preprocessing, open_image
from seed_edge.prompts import TEMPLATES, Prompts, template_name
from seed_edge.vocab import CodeSpace

EMBEDDED_SAMPLING = Sampling(temperature=0.4, top_k=50, top_p=0.9, guidance=1.0, best_of=6)
EMBEDDED_BEAMS = 5
EMBEDDED_VIEWS = 4
REFERENCE_SAMPLING = Sampling(temperature=1.0, top_k=0, top_p=0.5)
PARITY_IMAGES = 8
MAX_SOURCES_BYTES = 1 << 20
"""Maximum size of a list of sources, in bytes."""
PARITY_CONTEXT = 128
Report = Callable[[str], None]


@dataclass(frozen=True)
class Parts:
    """Paths of the checkpoints to export."""

    tokenizer: Path
    """A run of `seed-edge train`, or SEED-2's tokenizer folder."""
    vit: Path | None = None
    """`eva_vit_g.pth`; the default is the one in `tokenizer`."""
    llm: Path | None = None
    """A LLaMA folder; the default is that of the run, if `tokenizer` is a run."""
    lora: Path | None = None
    """An adapter for it, merged before conversion."""
    diffusion: Path | None = None
    """A `stable-diffusion-2-1-unclip` folder."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export."""

    name: str
    weight_type: str = "Q8_0"
    """GGUF type of the language model's matrices."""
    image_weights: str = "fp16"
    """Storage type of the weights of the graphs; computation is in fp32."""
    decoder_weights: str | None = None
    """Storage type of the decoder, if it differs."""
    resize_filter: str = "bilinear"
    """SEED-2's scripts use bilinear; its tokenizer class alone uses bicubic."""
    template: str | None = None
    """Prompt template; by default derived from the checkpoint."""
    max_caption_ids: int = 48
    license: str = ""
    sources: Path | None = None
    """JSON list of the data and models that the weights were made from: objects with name,
    license and role.
    """
    photos: tuple[Path, ...] = ()
    """Images to compare codes on, beside smooth random ones."""
    threads: int = 1
    replace: bool = False


def export_bundle(parts: Parts, out: Path, options: ExportOptions, report: Report) -> Manifest:
    """Export to a bundle at `out`, which appears only after every comparison has passed.

    Raises:
        CheckpointError: a part is missing or does not fit the others.
        ParityError: an exported file differs from its checkpoint by more than the tolerance.
    """
    inputs = (
        parts.tokenizer,
        parts.vit,
        parts.llm,
        parts.lora,
        parts.diffusion,
        options.sources,
        *options.photos,
    )
    check_not_around(out, [path for path in inputs if path is not None], "--output", BundleError)
    key = fingerprint(options, parts.tokenizer, parts.vit, parts.llm, parts.lora, parts.diffusion)
    with resumable(out, options.replace, key, report) as stages:
        folder = stages.folder
        report_estimates(plan(parts, options), out, stages.size, report)
        base = Bundle.open(parts.tokenizer) if is_bundle(parts.tokenizer) else None
        if base is None:
            images = stages.run("image tokenizer", lambda: export_images(parts, folder, options, report))
        else:
            images = stages.run("image tokenizer", lambda: copy_images(base, folder, report))
        codes, embed_dim = CodeSpace(**images["codes"]), int(images["image_embed_dim"])
        parity = {
            "image_weights": options.image_weights,
            "weight_type": options.weight_type,
            "images": images["parity"],
        }
        diffusion, output_size = base.manifest.diffusion if base else None, int(images["output_size"])
        if parts.diffusion is not None:
            source = parts.diffusion
            exported = stages.run(
                "diffusion", lambda: export_diffusion(source, embed_dim, folder, options, report)
            )
            diffusion, output_size = (
                parse(Diffusion, exported["diffusion"], "diffusion"),
                int(exported["output_size"]),
            )
            parity["diffusion"] = exported["parity"]
        language = None
        if parts.llm is not None or (parts.tokenizer / LLM_FOLDER).is_dir():
            exported = stages.run(
                "language model", lambda: export_language(parts, codes, folder, options, report, base)
            )
            language, parity["language"] = (
                parse(Language, exported["language"], "language model"),
                exported["parity"],
            )
        manifest = Manifest(
            format=FORMAT,
            name=options.name,
            kind="unclip" if embed_dim else "pixels",
            preprocessing=parse(Preprocessing, images["preprocessing"], "image tokenizer"),
            codes=codes,
            output_size=output_size,
            image_embed_dim=embed_dim,
            language=language,
            diffusion=diffusion,
            files={
                path.name: entry_for(path)
                for path in sorted(folder.iterdir())
                if not path.name.startswith(".") and path.name != MANIFEST
            },
            parity=parity,
            sources=read_sources(options.sources) if options.sources else (),
            license=options.license,
        )
        manifest = with_measurements(manifest, folder)
        (folder / MANIFEST).write_text(manifest.to_json(), "utf-8")
    report(f"bundle: {sum(entry.size for entry in manifest.files.values()):,} bytes in {out}")
    return manifest


def plan(parts: Parts, options: ExportOptions) -> list[Estimate]:
    """Estimate each part. Opens the checkpoints as far as needed, so that a wrong path is an error before any
    work.

    Raises:
        CheckpointError: a part is missing or damaged, or the parts cannot be combined.
    """
    folder = parts.tokenizer
    if is_bundle(folder):
        if parts.llm is None:
            raise CheckpointError(
                f"{folder} is a bundle; its encoder and decoder are copied, so give another --llm"
            )
        if parts.diffusion is not None:
            raise CheckpointError(f"{folder} is a bundle; its decoder is copied, so leave out --diffusion")
        estimates = [estimate_copies([folder / name for name in image_files(Bundle.open(folder))])]
    elif is_run(folder):
        estimates = [
            estimate_tokenizer(load_geometry(folder), [folder / IMAGE_TOKENIZER_FILE], options.image_weights)
        ]
    else:
        geometry, main, vit = find_seed_tokenizer(folder, parts.vit)
        estimates = [
            estimate_tokenizer(geometry, [main] if vit is None else [main, vit], options.image_weights)
        ]
    if parts.diffusion is not None:
        estimates.append(estimate_diffusion(parts.diffusion, options.image_weights))
    if parts.llm is not None or (folder / LLM_FOLDER).is_dir():
        estimates.append(estimate_language(open_language(parts), options.weight_type))
    elif parts.lora is not None:
        raise CheckpointError(f"{parts.lora}: an adapter is merged into a language model; give it with --llm")
    return estimates


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle."""
    return (folder / MANIFEST).is_file()


def image_files(base: Bundle) -> list[str]:
    """Names of the files of a bundle other than its language model."""
    language = base.manifest.language
    return [name for name in base.manifest.files if language is None or name != language.file]


def copy_images(base: Bundle, folder: Path, report: Report) -> dict[str, Any]:
    """Copy encoder, decoder and diffusion from a bundle; return their entries of the manifest, as JSON."""
    base.check_hashes()
    for name in image_files(base):
        shutil.copyfile(base.path / name, folder / name)
    manifest = base.manifest
    report(f"image tokenizer: copied from {manifest.name}")
    preprocessing = dataclasses.asdict(manifest.preprocessing)
    return {
        "codes": dataclasses.asdict(manifest.codes),
        "preprocessing": preprocessing | {name: [*preprocessing[name]] for name in ("mean", "std")},
        "output_size": manifest.output_size,
        "image_embed_dim": manifest.image_embed_dim,
        "parity": manifest.parity.get("images", {}),
    }


def open_language(parts: Parts) -> LlamaFolder:
    """Open the language model's folder; the weights are not read."""
    return LlamaFolder.open(parts.llm or parts.tokenizer / LLM_FOLDER, parts.tokenizer, parts.lora)


def export_images(parts: Parts, folder: Path, options: ExportOptions, report: Report) -> dict[str, Any]:
    """Write encoder and decoder; return their entries of the manifest, as JSON."""
    report("image tokenizer: reading")
    model, preprocessing = open_tokenizer(parts, options, report)
    geometry = model.geometry
    report("image tokenizer: exporting two graphs")
    specs = encoder_graph(geometry.image_size, geometry.num_queries), decoder_spec(model)
    storages = options.image_weights, options.decoder_weights or options.image_weights
    export_image_tokenizer(model, specs, (folder / ENCODER, folder / DECODER), storages)
    values = smooth_images(PARITY_IMAGES, preprocessing)
    if options.photos:
        values = np.concatenate([preprocessing([open_image(photo) for photo in options.photos]), values])
    parity = image_parity(model, specs, folder, storages, values)
    report(
        f"image tokenizer: {parity['equal_codes']:.1%} of codes equal, decoder's cosine "
        f"{parity['decoder_cosine']}"
    )
    return {
        "codes": {"codebook_size": geometry.codebook_size, "codes_per_image": geometry.num_queries},
        "preprocessing": dataclasses.asdict(preprocessing)
        | {"mean": [*preprocessing.mean], "std": [*preprocessing.std]},
        "output_size": model.geometry.output_size if isinstance(model, PixelTokenizer) else 0,
        "image_embed_dim": model.geometry.image_embed_dim if isinstance(model, SeedTokenizer) else 0,
        "parity": parity,
    }


def open_tokenizer(
    parts: Parts, options: ExportOptions, report: Report
) -> tuple[PixelTokenizer | SeedTokenizer, Preprocessing]:
    """Load the image tokenizer, of the kind that the files in its folder belong to, and its preprocessing."""
    if is_run(parts.tokenizer):
        pixel = load_image_tokenizer(parts.tokenizer)
        return pixel, preprocessing_of(pixel.geometry)
    seed = load_seed_tokenizer(parts.tokenizer, parts.vit, report)
    return seed, Preprocessing(seed.geometry.image_size, options.resize_filter, CLIP_MEAN, CLIP_STD)


def decoder_spec(model: PixelTokenizer | SeedTokenizer) -> GraphSpec:
    """Return the inputs and outputs of the decoder's graph."""
    if isinstance(model, PixelTokenizer):
        return pixel_decoder_graph(model.geometry.num_queries, model.geometry.output_size)
    return embedding_decoder_graph(model.geometry.num_queries, model.geometry.image_embed_dim)


def export_diffusion(
    path: Path, embed_dim: int, folder: Path, options: ExportOptions, report: Report
) -> dict[str, Any]:
    """Write the diffusion's files; return its entries of the manifest, as JSON."""
    report("diffusion: reading")
    unclip = UnclipFolder.open(path)
    if unclip.image_embed_dim != embed_dim:
        raise CheckpointError(
            f"{path} takes image embeddings of {unclip.image_embed_dim} values, the image tokenizer gives "
            f"{embed_dim or 'none'}; the two do not belong together"
        )
    report("diffusion: exporting two graphs")
    unclip.write(folder, options.image_weights)
    parity = diffusion_parity(unclip, folder, options.image_weights)
    report(f"diffusion: relative error {parity['unet_relative_error']}")
    return {
        "diffusion": dataclasses.asdict(unclip.settings()),
        "output_size": unclip.output_size,
        "parity": parity,
    }


def export_language(
    parts: Parts,
    codes: CodeSpace,
    folder: Path,
    options: ExportOptions,
    report: Report,
    base: Bundle | None = None,
) -> dict[str, Any]:
    """Write the language model; return its entries of the manifest, as JSON.

    Args:
        base: the bundle that the encoder is copied from; its prompts are kept if no template is given.
    """
    llama = open_language(parts)
    vocab = llama.vocab(codes.codes_per_image)
    if vocab.codes != codes:
        raise CheckpointError(
            f"{llama.tokenizer / 'added_tokens.json'} names {vocab.codebook_size} codes, the image "
            "tokenizer has "
            f"{codes.codebook_size}; the two parts come from different runs"
        )
    for correction in llama.corrections():
        report(f"language model: {correction}")
    previous = base.manifest.language if base else None
    if previous is not None and options.template is None and TEMPLATE not in llama.config:
        family, prompts = template_name(previous.prompts) or "its own", previous.prompts
    else:
        family, prompts = choose_prompts(llama, options.template, embedded=parts.llm is None)
    embedded = family.startswith("own")
    guessed = (
        "" if options.template or embedded else ", guessed from its name and layers; --template overrides it"
    )
    report(f"language model: exporting as {options.weight_type}, prompts of family {family}{guessed}")
    file = folder / ("llm.gguf" if parts.llm is None else llama.file_name(options.weight_type))
    write_as(llama, vocab, file, options.weight_type, options.name, options.threads)
    context = min(llama.context_length, PARITY_CONTEXT)
    parity = language_parity(llama, file, options.weight_type, vocab, context)
    report(f"language model: divergence {parity['logits_kl']} nats")
    language = Language(
        file=file.name,
        vocab=vocab,
        prompts=prompts,
        sampling=previous.sampling if previous else EMBEDDED_SAMPLING if embedded else REFERENCE_SAMPLING,
        context_length=llama.context_length,
        max_caption_ids=options.max_caption_ids,
        caption_beams=previous.caption_beams if previous else EMBEDDED_BEAMS if embedded else 1,
        caption_views=previous.caption_views if previous else EMBEDDED_VIEWS if embedded else 1,
    )
    return {"language": dataclasses.asdict(language), "parity": parity}


def choose_prompts(llama: LlamaFolder, template: str | None, embedded: bool) -> tuple[str, Prompts]:
    """Return the name of the prompt template, and its prompts.

    Args:
        template: None: derived from the checkpoint's configuration, name and number of layers.
        embedded: the language model comes from a run of `seed-edge train`.

    Raises:
        CheckpointError: the template is unknown, or cannot be determined.
    """
    if template is None:
        template = llama.config.get(TEMPLATE) or ("own" if embedded else None)
    if template is None:
        name = llama.path.resolve().name.lower()
        instructed = {32: "vicuna", 40: "llama2"}.get(int(llama.config["num_hidden_layers"]))
        template = "plain" if "pretrain" in name else instructed
    if template not in TEMPLATES:
        raise CheckpointError(
            f"{llama.path}: the prompt template cannot be determined; give --template, one of "
            f"{', '.join(TEMPLATES)}"
        )
    return template, TEMPLATES[template]


def read_sources(path: Path) -> tuple[Source, ...]:
    """Read a list of sources.

    Raises:
        CheckpointError: the file is missing or is not such a list.
    """
    try:
        value = read_checked_json(path, MAX_SOURCES_BYTES)
        if not isinstance(value, list):
            raise CheckpointError("it is not a list")
        return tuple(_source(Fields.of(item, f"source {number}")) for number, item in enumerate(value, 1))
    except (CheckpointError, BundleError) as error:
        raise CheckpointError(
            f"{path} must be a JSON list of objects with name, license and role ({error})"
        ) from error


def _source(fields: Fields) -> Source:
    known = [field.name for field in dataclasses.fields(Source)]
    unknown = next((key for key in fields.values if key not in known), None)
    if unknown is not None:
        raise CheckpointError(f"{fields.where}: {shown(unknown)} is unknown")
    return Source(*(fields.text(name) for name in known))


def smooth_images(count: int, preprocessing: Preprocessing, seed: int = 0) -> NDArray[np.float32]:
    """Return random smooth images, normalised: (count, 3, size, size)."""
    rng, size = np.random.default_rng(seed), preprocessing.image_size
    small = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(count)]
    return preprocessing.normalise(
        np.stack([np.asarray(i.resize((size, size), Image.Resampling.BICUBIC)) for i in small])
    )
