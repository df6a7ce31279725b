"""Evaluates a bundle on the held-out samples of training data: captions, names, drawings and round trips."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seed_edge.contact_sheet import captioned, contact_sheet, save_contact_sheet
from seed_edge.data.phrasing import COLOURS, head_noun, is_countable, plain, plural, with_article
from seed_edge.data.samples import Picture, Sample, load_picture, read_samples
from seed_edge.data.subsets import CANONICAL_STYLE
from seed_edge.errors import DataError
from seed_edge.metrics.captions import bleu4, cider, rouge_l
from seed_edge.metrics.features import FeatureExtractor, ranks_of_targets
from seed_edge.metrics.images import psnr, ssim
from seed_edge.preprocess import to_rgb
from seed_edge.runtime.pipeline import SeedEdge

TOP_K = 5
"""Number of best ranks that count as found."""
CELL = 128
"""Side of an image on a contact sheet, in pixels."""
SHEET_COLUMNS = 8


@dataclass(frozen=True)
class EvalSample:
    """A sample with its image."""

    sample: Sample
    picture: Picture

    def image(self) -> Image.Image:
        """Read the image as the runtime does, with transparent parts white."""
        return to_rgb(load_picture(self.picture))


class Evaluation:
    """Metrics of one bundle; each method returns a JSON object.

    Attributes:
        cells: captioned images for a contact sheet.
    """

    def __init__(
        self, edge: SeedEdge, data: Sequence[Path], limit: int, seed: int, report: Callable[[str], None]
    ) -> None:
        self.edge, self.limit, self.rng, self.report = edge, limit, np.random.default_rng(seed), report
        samples = [
            EvalSample(sample, pictures[0]) for sample, pictures in read_samples(data) if len(pictures) == 1
        ]
        samples = [samples[i] for i in self.rng.permutation(len(samples))]
        held_out = [item for item in samples if item.sample.held_out]
        if not held_out:
            raise DataError(
                f"no sample of {', '.join(map(str, data))} is held out, so nothing can be measured; put "
                "`-val` into the name of a file or folder whose samples were not trained on"
            )
        self.with_sentences = [item for item in held_out if item.sample.captions][:limit]
        self.labelled = [item for item in held_out if item.sample.label and not item.sample.style][:limit]
        self.drawings = [item for item in held_out if item.sample.label and item.sample.style]
        self.training = [item for item in samples if not item.sample.held_out and not item.sample.recoloured]
        self.cells: list[tuple[Image.Image, str]] = []

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The feature network, loaded at its first use."""
        return FeatureExtractor()

    def captions(self) -> dict[str, Any]:
        """Return COCO metrics of captions of photos with sentences; the baseline is the CIDEr of captions of
        other photos.
        """
        if not self.with_sentences:
            return {"photos": 0}
        captions = self._captions_of(self.with_sentences)
        references = [item.sample.captions for item in self.with_sentences]
        return {
            "photos": len(captions),
            "bleu4": round(bleu4(captions, references), 3),
            "rouge_l": round(rouge_l(captions, references), 3),
            "cider": round(cider(captions, references), 3),
            "cider_of_other_photos": round(cider(captions[1:] + captions[:1], references), 3),
        }

    def names(self) -> dict[str, Any]:
        """Return the share of captions that contain the label: its noun for photos, the whole label for
        drawings.
        """
        result: dict[str, Any] = {}
        groups = {"photos": (self.labelled, _noun), "drawings": (self.drawings[: self.limit], _label)}
        for kind, (group, name) in groups.items():
            captions = self._captions_of(group)
            expected_names = [name(item.sample) for item in group]
            result[kind] = {
                "count": len(group),
                "named": _share_named(captions, expected_names),
                "by_captions_of_others": _share_named(captions[1:] + captions[:1], expected_names),
            }
        return result

    def found_drawings(self, nouns: int) -> dict[str, Any]:
        """Return how often drawings of random nouns retrieve the held-out drawing of the same noun.

        Retrieval uses the features of a network that is not used in training. Baselines are real drawings of
        the canonical style, and their round trips through the codes.
        """
        extractor = self.extractor
        gallery = {item.sample.label: item for item in self.drawings if item.sample.label}
        labels = sorted(gallery)
        canonical = [item for item in self.training if item.sample.style == CANONICAL_STYLE]
        real = {item.sample.label: item for item in canonical if item.sample.label in gallery}
        chosen = [labels[i] for i in self.rng.permutation(len(labels)) if labels[i] in real][:nouns]
        if not chosen:
            return {"nouns": 0}
        self.report(f"retrieving {len(chosen)} nouns among {len(labels)} drawings")
        vectors = extractor.vectors([gallery[label].image() for label in labels])
        targets = np.array([labels.index(label) for label in chosen])

        def score(pictures: Sequence[Image.Image]) -> dict[str, float]:
            ranks = ranks_of_targets(extractor.vectors(pictures), vectors, targets)
            return {"first": _share(ranks < 1), f"within_{TOP_K}": _share(ranks < TOP_K)}

        drawn = [self.edge.draw(with_article(plain(label)), seed=i).image for i, label in enumerate(chosen)]
        originals = [real[label].image() for label in chosen]
        return {
            "nouns": len(chosen),
            "among": len(labels),
            "drawn": score(drawn),
            "round_trip": score([self.edge.decode(codes) for codes in self._codes(originals)]),
            "real": score(originals),
            "chance": {
                "first": round(1 / len(labels), 3),
                f"within_{TOP_K}": round(TOP_K / len(labels), 3),
            },
        }

    def round_trip(self, count: int) -> dict[str, Any]:
        """Return reconstruction metrics of held-out images; baselines are the mean image and the nearest
        training image.
        """
        extractor, size = self.extractor, self.edge.bundle.manifest.output_size
        result: dict[str, Any] = {}
        for kind, is_drawing in (("photos", False), ("drawings", True)):
            held_out = [
                item
                for item in [*self.with_sentences, *self.labelled, *self.drawings]
                if (item.sample.style is not None) == is_drawing
            ]
            training = [item for item in self.training if (item.sample.style is not None) == is_drawing][
                : 4 * count
            ]
            if not held_out or not training:
                continue
            chosen = [held_out[i] for i in self.rng.permutation(len(held_out))[:count]]
            truth = [_square(item.image(), size) for item in chosen]
            known = [_square(item.image(), size) for item in training]
            vectors, known_vectors = extractor.vectors(truth), extractor.vectors(known)
            mean = Image.fromarray(
                np.mean([np.asarray(image) for image in known], 0).round().astype(np.uint8)
            )
            nearest = [known[i] for i in (vectors @ known_vectors.T).argmax(1)]
            decoded = [self.edge.decode(codes) for codes in self._codes(truth)]
            methods = {"codes": decoded, "mean_picture": [mean] * len(truth), "nearest_of_training": nearest}
            result[kind] = {"pictures": len(truth), "training_pictures": len(known)} | {
                method: _similarity(images, truth, extractor, vectors) for method, images in methods.items()
            }
        return result

    def sheet_of_prompts(self, count: int) -> list[tuple[Image.Image, str]]:
        """Draw random prompts (nouns, colours, counts, two things) without selection; return images with
        their prompts.
        """
        canonical = [item.sample for item in self.training if item.sample.style == CANONICAL_STYLE]
        labels = sorted({plain(sample.label) for sample in canonical if sample.label})
        prompts = [random_prompt(labels, self.rng) for _ in range(count)] if labels else []
        return [(self.edge.draw(prompt, seed=i).image, prompt) for i, prompt in enumerate(prompts)]

    def _captions_of(self, group: Sequence[EvalSample]) -> list[str]:
        """Caption images; the first 24 captioned images are added to `cells`."""
        captions = []
        for number, item in enumerate(group):
            captions.append(self.edge.caption(item.image()))
            if number < 24:
                self.cells.append((_square(item.image(), CELL), captions[-1]))
            if number % 100 == 99:
                self.report(f"captions: {number + 1:,} of {len(group):,}")
        return captions

    def _codes(self, images: Sequence[Image.Image], batch: int = 16) -> NDArray[np.int64]:
        return np.concatenate([self.edge.encode(images[i : i + batch]) for i in range(0, len(images), batch)])


def random_prompt(labels: Sequence[str], rng: np.random.Generator) -> str:
    """Return a prompt for a noun, a coloured noun, a count or two things, with equal probability."""
    first, second = (str(rng.choice(labels)) for _ in range(2))
    kind = int(rng.integers(4))
    if kind == 1:
        return with_article(f"{rng.choice(COLOURS)} {first}")
    if kind == 2 and is_countable(first):
        return f"{rng.choice(['two', 'three'])} {plural(first)}"
    if kind == 3:
        return f"{with_article(first)} next to {with_article(second)}"
    return with_article(first)


def write_sheet(path: Path, cells: Sequence[tuple[Image.Image, str]]) -> None:
    """Write images with a text below each as one JPEG (`.jpg`) or PNG; without cells no file is written."""
    if cells:
        sheet = contact_sheet([captioned(_square(image, CELL), text) for image, text in cells], SHEET_COLUMNS)
        save_contact_sheet(path, sheet)


def _square(image: Image.Image, size: int) -> Image.Image:
    return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def _noun(sample: Sample) -> str:
    return head_noun(plain(sample.label or ""))


def _label(sample: Sample) -> str:
    return plain(sample.label or "")


def _share_named(captions: Sequence[str], names: Sequence[str]) -> float:
    """Return the share of captions that contain the name as whole words, in singular or plural."""
    pairs = zip(captions, names, strict=True)
    return _share(
        [
            re.search(rf"\b{re.escape(name.removesuffix('s'))}(?:s|es)?\b", text) is not None
            for text, name in pairs
        ]
    )


def _share(hits: Sequence[bool] | NDArray[np.bool_]) -> float:
    return round(float(np.mean(hits)), 3) if len(hits) else 0.0


MAX_PSNR = 100.0
"""PSNR reported for equal images, in dB, since JSON has no infinity."""


def _similarity(
    images: Sequence[Image.Image],
    truth: Sequence[Image.Image],
    extractor: FeatureExtractor,
    vectors: NDArray[np.float32],
) -> dict[str, float]:
    pairs = list(zip(images, truth, strict=True))
    distance = 1 - (extractor.vectors(images) * vectors).sum(1)
    return {
        "psnr": round(float(np.mean([min(psnr(a, b), MAX_PSNR) for a, b in pairs])), 2),
        "ssim": round(float(np.mean([ssim(a, b) for a, b in pairs])), 3),
        "lite2_distance": round(float(distance.mean()), 3),
    }
