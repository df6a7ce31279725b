"""Measures a bundle on the held-out samples of training data: captions, names, drawings and round trips."""

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
from seed_edge.metrics.features import Judge, rank_of_own
from seed_edge.metrics.images import psnr, ssim
from seed_edge.preprocess import to_rgb
from seed_edge.runtime.pipeline import SeedEdge

WITHIN = 5
"""Rank up to which a drawing counts as found."""
CELL = 128
"""Side of an image on a contact sheet, in pixels."""
SHEET_COLUMNS = 8


@dataclass(frozen=True)
class EvalSample:
    """A sample with its image."""

    sample: Sample
    picture: Picture

    def image(self) -> Image.Image:
        """The image as the runtime sees it, with transparent parts white."""
        return to_rgb(load_picture(self.picture))


class Evaluation:
    """Metrics of one bundle; each method returns a JSON object. `cells` collects captioned images for a
    contact sheet.
    """

    def __init__(
        self, edge: SeedEdge, data: Sequence[Path], limit: int, seed: int, report: Callable[[str], None]
    ) -> None:
        self.edge, self.limit, self.rng, self.report = edge, limit, np.random.default_rng(seed), report
        everything = [
            EvalSample(sample, pictures[0]) for sample, pictures in read_samples(data) if len(pictures) == 1
        ]
        everything = [everything[i] for i in self.rng.permutation(len(everything))]
        held_out = [item for item in everything if item.sample.held_out]
        if not held_out:
            raise DataError(
                f"no sample of {', '.join(map(str, data))} is held out, so nothing can be measured; put "
                "`-val` into the name "
                "of a file or folder whose samples were not trained on"
            )
        self.sentences = [item for item in held_out if item.sample.captions][:limit]
        self.labelled = [item for item in held_out if item.sample.label and not item.sample.style][:limit]
        self.drawings = [item for item in held_out if item.sample.label and item.sample.style]
        self.seen = [item for item in everything if not item.sample.held_out and not item.sample.recoloured]
        self.cells: list[tuple[Image.Image, str]] = []

    @cached_property
    def judge(self) -> Judge:
        """The feature network, loaded at its first use."""
        return Judge()

    def captions(self) -> dict[str, Any]:
        """COCO metrics of captions of photos with sentences, and CIDEr with the captions of other photos as a
        baseline.
        """
        if not self.sentences:
            return {"photos": 0}
        captions = self._captions_of(self.sentences)
        references = [item.sample.captions for item in self.sentences]
        return {
            "photos": len(captions),
            "bleu4": round(bleu4(captions, references), 3),
            "rouge_l": round(rouge_l(captions, references), 3),
            "cider": round(cider(captions, references), 3),
            "cider_of_other_photos": round(cider(captions[1:] + captions[:1], references), 3),
        }

    def names(self) -> dict[str, Any]:
        """Share of captions that contain the label: its noun for photos, the whole label for drawings."""
        result: dict[str, Any] = {}
        groups = {"photos": (self.labelled, _noun), "drawings": (self.drawings[: self.limit], _label)}
        for kind, (group, name) in groups.items():
            captions = self._captions_of(group)
            wanted = [name(item.sample) for item in group]
            result[kind] = {
                "count": len(group),
                "named": _share_named(captions, wanted),
                "by_captions_of_others": _share_named(captions[1:] + captions[:1], wanted),
            }
        return result

    def found_drawings(self, nouns: int) -> dict[str, Any]:
        """Drawings of `nouns` random nouns, judged by another trunk among drawings of the held-out style.

        Beside it what real drawings of the canonical style, and their round trips through the codes, reach.
        """
        judge, gallery = self.judge, {item.sample.label: item for item in self.drawings if item.sample.label}
        labels = sorted(gallery)
        canonical = [item for item in self.seen if item.sample.style == CANONICAL_STYLE]
        real = {item.sample.label: item for item in canonical if item.sample.label in gallery}
        asked = [labels[i] for i in self.rng.permutation(len(labels)) if labels[i] in real][:nouns]
        if not asked:
            return {"nouns": 0}
        self.report(f"judging {len(asked)} nouns among {len(labels)} drawings")
        vectors = judge.vectors([gallery[label].image() for label in labels])
        own = np.array([labels.index(label) for label in asked])

        def score(pictures: Sequence[Image.Image]) -> dict[str, float]:
            ranks = rank_of_own(judge.vectors(pictures), vectors, own)
            return {"first": _share(ranks < 1), f"within_{WITHIN}": _share(ranks < WITHIN)}

        drawn = [self.edge.draw(with_article(plain(label)), seed=i).image for i, label in enumerate(asked)]
        originals = [real[label].image() for label in asked]
        return {
            "nouns": len(asked),
            "among": len(labels),
            "drawn": score(drawn),
            "round_trip": score([self.edge.decode(codes) for codes in self._codes(originals)]),
            "real": score(originals),
            "chance": {
                "first": round(1 / len(labels), 3),
                f"within_{WITHIN}": round(WITHIN / len(labels), 3),
            },
        }

    def round_trip(self, count: int) -> dict[str, Any]:
        """Reconstruction metrics of held-out images; baselines are the mean image and the nearest training
        image.
        """
        judge, size = self.judge, self.edge.bundle.manifest.output_size
        result: dict[str, Any] = {}
        for kind, drawn in (("photos", False), ("drawings", True)):
            shown = [
                k
                for k in [*self.sentences, *self.labelled, *self.drawings]
                if (k.sample.style is not None) == drawn
            ]
            seen = [k for k in self.seen if (k.sample.style is not None) == drawn][: 4 * count]
            if not shown or not seen:
                continue
            truth = [
                _square(k.image(), size) for k in (shown[i] for i in self.rng.permutation(len(shown))[:count])
            ]
            known = [_square(k.image(), size) for k in seen]
            vectors, known_vectors = judge.vectors(truth), judge.vectors(known)
            mean = Image.fromarray(
                np.mean([np.asarray(image) for image in known], 0).round().astype(np.uint8)
            )
            nearest = [known[i] for i in (vectors @ known_vectors.T).argmax(1)]
            made = [self.edge.decode(codes) for codes in self._codes(truth)]
            ways = {"codes": made, "mean_picture": [mean] * len(truth), "nearest_of_training": nearest}
            result[kind] = {"pictures": len(truth), "training_pictures": len(known)} | {
                way: _likeness(pictures, truth, judge, vectors) for way, pictures in ways.items()
            }
        return result

    def sheet_of_prompts(self, count: int) -> list[tuple[Image.Image, str]]:
        """Images drawn for random prompts (nouns, colours, counts, two things), not selected, with their
        prompts.
        """
        canonical = [item.sample for item in self.seen if item.sample.style == CANONICAL_STYLE]
        labels = sorted({plain(sample.label) for sample in canonical if sample.label})
        prompts = [random_prompt(labels, self.rng) for _ in range(count)] if labels else []
        return [(self.edge.draw(prompt, seed=i).image, prompt) for i, prompt in enumerate(prompts)]

    def _captions_of(self, group: Sequence[EvalSample]) -> list[str]:
        """Captions of images; the first 24 are added to `cells`."""
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
    """A noun, a coloured noun, a count or two things, with equal probability."""
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
    """Write images with a text below each, as JPEG (`.jpg`) or PNG; without cells no file is written."""
    if cells:
        sheet = contact_sheet([captioned(_square(image, CELL), text) for image, text in cells], SHEET_COLUMNS)
        save_contact_sheet(path, sheet)


def _square(image: Image.Image, size: int) -> Image.Image:
    return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def _noun(sample: Sample) -> str:
    return head_noun(plain(sample.label or ""))


def _label(sample: Sample) -> str:
    return plain(sample.label or "")


def _share_named(captions: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of captions that contain the name as whole words, in singular or plural."""
    pairs = zip(captions, wanted, strict=True)
    return _share(
        [
            re.search(rf"\b{re.escape(name.removesuffix('s'))}(?:s|es)?\b", text) is not None
            for text, name in pairs
        ]
    )


def _share(hits: Sequence[bool] | NDArray[np.bool_]) -> float:
    return round(float(np.mean(hits)), 3) if len(hits) else 0.0


EQUAL = 100.0
"""PSNR reported for equal images, in dB, since JSON has no infinity."""


def _likeness(
    pictures: Sequence[Image.Image], truth: Sequence[Image.Image], judge: Judge, vectors: NDArray[np.float32]
) -> dict[str, float]:
    pairs = list(zip(pictures, truth, strict=True))
    distance = 1 - (judge.vectors(pictures) * vectors).sum(1)
    return {
        "psnr": round(float(np.mean([min(psnr(a, b), EQUAL) for a, b in pairs])), 2),
        "ssim": round(float(np.mean([ssim(a, b) for a, b in pairs])), 3),
        "lite2_distance": round(float(distance.mean()), 3),
    }
