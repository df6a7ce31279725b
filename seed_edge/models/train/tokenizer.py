"""Trains the image tokenizer on cached trunk features, in two stages.

First encoder, codebook and decoder together. Losses: pixels (L1 and squared), trunk features of the picture (perceptual),
vector quantization, and words: from the semantic codes one must tell which words the texts of the picture use (Joulin et al.
2016, arXiv:1511.02251), and a small language model must tell a whole text (`reader`). Then, when the codes of every picture
stand, the decoder alone, which is cheap: nothing in front of the codebook is run any more. Losses: pixels (L1 alone, which
blurs less) and trunk features.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.models.checkpoints import save_image_tokenizer
from seed_edge.models.config import PixelGeometry
from seed_edge.models.image_tokenizer import PixelTokenizer
from seed_edge.models.train.loop import Loop, optimizers_for
from seed_edge.models.train.reader import Reader, WordList
from seed_edge.models.train.samples import VIEWS, Cache, Sample, build_cache
from seed_edge.models.train.texts import caption
from seed_edge.models.trunk import pretrained_trunk
from seed_edge.preprocess import to_images

PERCEPTUAL_TAPS = (2, 4, 10)
CODES_FILE = "codes.npz"
"""In the folder of a run: the codes of every cached picture."""
DECODER_FOLDER = "decoder-{:08x}"
"""In the folder of a run: state and log of the second stage for a codebook, named by its sum."""
STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "is",
        "are",
        "and",
        "with",
        "to",
        "his",
        "her",
        "their",
        "its",
        "by",
        "for",
        "from",
        "as",
        "it",
        "this",
        "that",
    ]
)


@dataclass(frozen=True)
class TokenizerRecipe:
    """Knobs of one training run."""

    steps: int = 2000
    batch: int = 128
    painted: int = 36
    """Pictures of a batch that are drawn and compared; of the others only the words are learnt, at a fraction of the cost."""
    looked_at: int = 18
    """Pictures of a batch compared in the trunk's features too, drawings first."""
    rate: float = 1.5e-3
    """Peak learning rate."""
    warmup: int = 60
    weight_decay: float = 0.02
    painted_shares: tuple[float, float, float] = (0.45, 0.25, 0.3)
    """Of drawings, composites and photos, among the pictures that are drawn."""
    read_shares: tuple[float, float, float] = (0.4, 0.1, 0.5)
    """The same among the others."""
    feature_dropout: float = 0.15
    """Of the trunk's channels; the words of pictures in unseen styles are told better."""
    perceptual_weight: float = 0.5
    words_weight: float = 0.25
    reader_weight: float = 0.25
    vq_weight: float = 1.0
    quantized_from: float = 0.1
    """Share of the run over which quantized vectors take the place of continuous ones, picture by picture. Codes
    mean nothing at first; a decoder that saw only them would learn to paint the mean picture."""
    revive_every: int = 40
    """Steps between moving codebook rows that nothing uses."""
    num_words: int = 4000
    """Most frequent words that the codes have to tell."""
    decoder_steps: int = 3000
    """Steps of the second stage."""
    decoder_batch: int = 32
    decoder_rate: float = 1e-3
    decoder_shares: tuple[float, float, float] = (0.5, 0.35, 0.15)
    """Of drawings, composites and photos in the second stage."""
    decoder_perceptual_weight: float = 1.0
    seed: int = 0


def words_of(sample: Sample) -> Counter[str]:
    """Words of all texts of a sample, weighted: keywords of a drawing count a third."""
    words: Counter[str] = Counter()
    for text in sample.captions:
        words.update(set(re.findall(r"[a-z]+", text.lower())) - STOP_WORDS)
    if sample.label:
        words.update({word: 3 for word in re.findall(r"[a-z]+", sample.label.lower()) if word not in STOP_WORDS})
        words.update({word: 1 for word in sample.tags if word.isalpha()})
    for phrase in sample.phrases:
        words.update(set(re.findall(r"[a-z]+", phrase)) - STOP_WORDS)
    if sample.colour:
        words[sample.colour] += 3
    if sample.label or sample.captions or sample.phrases:
        words["drawing" if sample.style else "photo"] += 1
    return words


class WordTargets:
    """For each sample a distribution over the vocabulary of words, rarer words weighing more."""

    def __init__(self, samples: Sequence[Sample], num_words: int) -> None:
        bags = [words_of(sample) for sample in samples]
        documents = Counter(word for bag in bags for word in bag)
        self.words = [word for word, count in documents.most_common(num_words) if count > 1]
        index = {word: i for i, word in enumerate(self.words)}
        inverse = np.array([np.log(1 + len(samples) / documents[word]) for word in self.words], np.float32)
        self._bags = [
            [(index[word], count * inverse[index[word]]) for word, count in bag.items() if word in index] for bag in bags
        ]

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        """(len(numbers), words); rows sum to 1, or to 0 where a sample has no words."""
        target = torch.zeros(len(numbers), len(self.words))
        for row, number in enumerate(numbers):
            for word, weight in self._bags[number]:
                target[row, word] = float(weight)
        return target / target.sum(1, keepdim=True).clamp(min=1e-6)


class Perceptual(nn.Module):
    """Distance of two pictures in the frozen trunk's features, each tap scaled by its own spread."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk.to(memory_format=torch.channels_last)

    def forward(self, drawn: Tensor, truth: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._taps(truth)
        total = drawn.new_zeros(())
        for a, b in zip(self._taps(drawn), wanted, strict=True):
            total = total + F.mse_loss(a, b) / b.var().clamp(min=1e-6)
        return total / len(PERCEPTUAL_TAPS)

    def _taps(self, pixels: Tensor) -> list[Tensor]:
        normalised = pixels.mul(2).sub(1).contiguous(memory_format=torch.channels_last)
        return [tap.float() for tap in self.trunk.taps(normalised, PERCEPTUAL_TAPS)]


class BatchSource:
    """Draws rows of the cache: fixed shares of drawings, composites and photos, in this order; training samples only."""

    def __init__(self, cache: Cache, batch: int, shares: Sequence[float]) -> None:
        rows = cache.rows(held_out=False)
        samples = [cache.samples[row // VIEWS] for row in rows]
        kinds = np.array([2 if sample.style is None else 1 if sample.phrases else 0 for sample in samples])
        self.pools = [rows[kinds == kind] for kind in range(3)]
        there = np.array(shares) * [len(pool) > 0 for pool in self.pools]
        edges = np.rint(np.cumsum(there / there.sum()) * batch).astype(int)
        self.counts = np.diff(edges, prepend=0)

    def __call__(self, rng: np.random.Generator) -> NDArray[np.int64]:
        rows = np.concatenate([rng.choice(pool, n) for pool, n in zip(self.pools, self.counts, strict=True) if n])
        return rows + (rng.random(len(rows)) < 0.4)  # view 1 in two of five


def train_tokenizer(
    tars: Sequence[Path],
    out: Path,
    geometry: PixelGeometry,
    recipe: TokenizerRecipe,
    report: Callable[[str], None],
    trunk_weights: Path | None = None,
) -> None:
    """Train an image tokenizer on WebDataset tars and write its checkpoint into `out`.

    Interrupted, the same call goes on at the last saved step.
    """
    torch.manual_seed(recipe.seed)
    trunk = pretrained_trunk(trunk_weights)
    cache = build_cache(tars, out / "cache", trunk, geometry, report)
    model = PixelTokenizer(geometry)
    model.trunk.load_state_dict(trunk.state_dict())
    model.trunk.requires_grad_(False)
    model.pixel_head.to(memory_format=torch.channels_last)
    targets = WordTargets(cache.samples, recipe.num_words)
    words_head = nn.Sequential(
        nn.Flatten(),
        nn.Linear(geometry.semantic_queries * geometry.qformer_width, 2 * geometry.qformer_width),
        nn.GELU(),
        nn.Linear(2 * geometry.qformer_width, len(targets.words)),
    )
    texts = np.random.default_rng(recipe.seed)
    word_list = WordList(
        [caption(s, texts) or "" for s in cache.samples for _ in range(3) if not s.held_out], recipe.num_words
    )
    reader = Reader(len(word_list), geometry.semantic_queries, geometry.qformer_width, heads=geometry.qformer_heads)
    perceptual = Perceptual(trunk)
    to_paint = BatchSource(cache, recipe.painted, recipe.painted_shares)
    to_read = BatchSource(cache, recipe.batch - recipe.painted, recipe.read_shares)
    measure_channels(model, cache)
    usage = nn.Module()
    usage.register_buffer("counts", torch.zeros(geometry.codebook_size))
    counts = usage.get_buffer("counts")

    def losses_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        painted = to_paint(rng)
        rows = np.concatenate([painted, to_read(rng)])
        vision = torch.from_numpy(cache.features[rows].astype(np.float32))
        vision = F.dropout(vision - model.vision_mean, recipe.feature_dropout) + model.vision_mean
        truth = pixels_of(cache, painted)
        read, wanted = word_list.batch([caption(cache.samples[row // VIEWS], rng) for row in rows])
        with torch.autocast("cpu", torch.bfloat16):
            z = model.query_features(vision)
            if step % recipe.revive_every == 0 and step < 0.8 * recipe.steps:
                generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
                model.quantize.revive(counts, z.detach().flatten(0, 1), 0.03 * counts.mean().item() + 1e-9, generator)
            quantized = model.quantize(z)
            share = step / (recipe.quantized_from * recipe.steps)
            chosen = torch.from_numpy(rng.random(len(rows)) < share)[:, None, None]
            vectors = torch.where(chosen, quantized.vectors, z)
            drawn = model.pixel_head(model.code_features(vectors[: recipe.painted])).float()
            told = model.told(vectors)
            words = F.log_softmax(words_head(told).float(), -1)
            reading = reader(told, read, wanted)
            look = perceptual(drawn[: recipe.looked_at], truth[: recipe.looked_at])
        counts.mul_(0.995).add_(torch.bincount(quantized.codes.flatten(), minlength=len(counts)), alpha=0.005)
        return {
            "l1": F.l1_loss(drawn, truth),
            "mse": 2 * F.mse_loss(drawn, truth),
            "look": recipe.perceptual_weight * look,
            "words": -recipe.words_weight * (targets(rows // VIEWS) * words).sum(1).mean(),
            "reader": recipe.reader_weight * reading,
            "vq": recipe.vq_weight * quantized.loss,
        }

    def after(step: int) -> None:
        model.eval()
        save_image_tokenizer(model, out)
        write_sheet(model, cache, out / "sheets" / f"{step:06d}.png")
        used = int((counts > 0.03 * counts.mean()).sum())
        report(f"step {step:,}: checkpoint written; {used:,} of {geometry.codebook_size:,} codes in use")
        model.train()

    modules = {"model": model, "words": words_head, "reader": reader, "usage": usage}
    optimizers = optimizers_for([model, words_head, reader], recipe.weight_decay, heads=[words_head, reader.head])
    Loop(out, recipe.steps, recipe.seed, report).run(modules, optimizers, losses_of, recipe.rate, recipe.warmup, after=after)
    train_decoder(model.eval(), cache, out, recipe, perceptual, report)


def train_decoder(
    model: PixelTokenizer,
    cache: Cache,
    out: Path,
    recipe: TokenizerRecipe,
    perceptual: Perceptual,
    report: Callable[[str], None],
) -> None:
    """The second stage: what stands behind the codebook, on the codes that every picture has now."""
    codes = torch.from_numpy(codes_of_cache(model, cache, out / CODES_FILE))
    source = BatchSource(cache, recipe.decoder_batch, recipe.decoder_shares)
    model.requires_grad_(False)
    for part in (model.decode_task_layer, model.blocks_image, model.pixel_head):
        part.requires_grad_(True)
    model.pos_embed_image.requires_grad_(True)

    def losses_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        rows = source(rng)
        truth = pixels_of(cache, rows)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = model.pixel_head(model.code_features(model.quantize.embedding(codes[rows]))).float()
            look = perceptual(drawn, truth)
        return {"l1": F.l1_loss(drawn, truth), "look": recipe.decoder_perceptual_weight * look}

    def after(step: int) -> None:
        save_image_tokenizer(model, out)
        write_sheet(model, cache, out / "sheets" / f"decoder-{step:06d}.png")

    loop = Loop(out / DECODER_FOLDER.format(codebook_sum(model)), recipe.decoder_steps, recipe.seed, report)
    optimizers = optimizers_for([model], recipe.weight_decay)
    loop.run({"model": model}, optimizers, losses_of, recipe.decoder_rate, recipe.warmup, after=after)


def pixels_of(cache: Cache, rows: NDArray[np.int64]) -> Tensor:
    """Pictures of the cache, (rows, 3, H, W) in [0, 1]."""
    return torch.from_numpy(cache.pixels[rows].astype(np.float32) / 255).permute(0, 3, 1, 2)


def codebook_sum(model: PixelTokenizer) -> int:
    """What tells one state of the codebook from another."""
    return zlib.crc32(model.quantize.embedding.weight.detach().numpy().tobytes())


@torch.inference_mode()
def codes_of_cache(model: PixelTokenizer, cache: Cache, path: Path, batch: int = 256) -> NDArray[np.int64]:
    """Codes of every cached row, (rows, n); kept at `path` with a sum over the codebook, and found again for this one only."""
    codebook = codebook_sum(model)
    if path.exists():
        with np.load(path) as kept:
            if int(kept["codebook"]) == codebook:
                return kept["codes"]
    found = []
    for start in range(0, len(cache.features), batch):
        vision = torch.from_numpy(cache.features[start : start + batch].astype(np.float32))
        found.append(model.quantize.codes(model.query_features(vision)).numpy())
    codes = np.concatenate(found)
    np.savez(path, codes=codes, codebook=codebook)
    return codes


def measure_channels(model: PixelTokenizer, cache: Cache, sample: int = 1000) -> None:
    """Set mean and spread of the trunk's channels from some rows of the cache."""
    step = max(1, len(cache.features) // sample)
    some = torch.from_numpy(cache.features[::step].astype(np.float32))
    model.vision_mean.copy_(some.mean((0, 1)))
    model.vision_std.copy_(some.std((0, 1)).clamp(min=1e-4))


@torch.inference_mode()
def reconstruct(model: PixelTokenizer, features: NDArray[np.float16]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes (m, n) and pixels (m, 3, H, W) of cached features (m, tokens, vit_width)."""
    codes = model.quantize.codes(model.query_features(torch.from_numpy(features.astype(np.float32))))
    return codes.numpy(), model.decode(codes).numpy()


def write_sheet(model: PixelTokenizer, cache: Cache, path: Path, columns: int = 16) -> None:
    """Random held-out pictures above their reconstructions, two rows of drawings, two of photos, as a PNG."""
    rng, rows = np.random.default_rng(1), cache.rows(held_out=True)
    if not len(rows):
        rows = cache.rows(held_out=False)
    drawn = np.array([cache.samples[row // VIEWS].style is not None for row in rows])
    lines = []
    for pool in (rows[drawn], rows[~drawn]):
        if len(pool):
            chosen = rng.choice(pool, columns)
            truth = [Image.fromarray(cache.pixels[row]) for row in chosen]
            lines += [truth, to_images(reconstruct(model, cache.features[chosen])[1])]
    side = model.geometry.output_size
    sheet = Image.new("RGB", (columns * side, len(lines) * side), "white")
    for y, line in enumerate(lines):
        for x, picture in enumerate(line):
            sheet.paste(picture, (x * side, y * side))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
