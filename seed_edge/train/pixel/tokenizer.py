"""Trains the image tokenizer that draws pixels, on cached trunk features.

1. What has a closed form: which directions of pooled features tell things apart (`glance`), and which few numbers tell most of
   the colours of a patch (`patches`).
2. The semantic queries, on words. Losses: vector quantization, and words: from the semantic codes one must tell which words
   the texts of the picture use (Joulin et al. 2016, arXiv:1511.02251), and a small language model must tell a whole text
   (`reader`).
3. The codebook, by k-means (`refit`).
4. The decoder, on codes that stand: nothing in front of the codebook is run any more. While codes move, a decoder learns to
   paint the mean of what each may yet become. Losses: pixels (L1) and trunk features of what is drawn (perceptual).
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.atomic import replacing
from seed_edge.data.code_shards import Codebook, CodeSample
from seed_edge.data.phrasing import caption
from seed_edge.data.samples import Picture, Sample, load_picture, read_samples
from seed_edge.data.subsets import shared_pools
from seed_edge.errors import DataError
from seed_edge.models.checkpoints import is_run, load_image_tokenizer, save_image_tokenizer
from seed_edge.models.config import PixelGeometry
from seed_edge.models.efficientnet import preprocessing_of, pretrained_trunk
from seed_edge.models.image_tokenizer import PixelTokenizer
from seed_edge.models.memory_layout import channels_last
from seed_edge.models.quantizer import Quantized
from seed_edge.output_checks import RUN_SIGNS, claim
from seed_edge.preprocess import to_images
from seed_edge.train.pixel.aux_captioner import Reader, WordList
from seed_edge.train.pixel.bag_of_words import WordTargets
from seed_edge.train.pixel.codebook import CodebookRecipe, refitted, refitted_geometry
from seed_edge.train.pixel.feature_cache import VIEWS, Cache, build_cache, open_cache, require_disk_space, view
from seed_edge.train.pixel.feature_noise import Variations
from seed_edge.train.pixel.patch_pca import fit_patches
from seed_edge.train.pixel.perceptual import Critic, PerceptualLoss, distance
from seed_edge.train.pixel.semantic_init import fit_glance
from seed_edge.train.recipe import Schedule
from seed_edge.train.trainer import STATE, Batch, LossModule, Report, Trainer
from seed_edge.vocab import CodeSpace

CACHE_FOLDER = "cache"
"""In the folder of a run: features and pixels of its pictures."""
VECTORS_FILE = "vectors.npz"
"""In the folder of a run: what the encoder gives for every cached picture, before quantization."""
DECODER_FOLDER = "decoder-{:08x}"
"""In the folder of a run: state and log of the decoder for a codebook, named by its sum."""
SEMANTIC_FOLDER = "semantic"
"""In the folder of a run: state and log of the semantic queries' training."""
UNSEEN = 400
"""Held-out pictures whose words are asked for at each checkpoint."""
SECOND_VIEWS = 0.4
"""Share of pictures whose words are told from their second view."""
MORE_FOLDER = "more-{:08x}"
"""In the folder of a run: pictures for the decoder alone, with their codes of a codebook, named by its sum."""
MORE_PIXELS, MORE_CODES, MORE_KEYS = "pixels.npy", "codes.npy", "keys.txt"
MORE_AT_ONCE = 32
REVIVED_BELOW = 0.03
"""Codebook rows used less than this share of the mean are moved."""


@dataclass(frozen=True)
class DecoderRecipe:
    """Knobs of the decoder's training."""

    schedule: Schedule
    pool_shares: dict[str, float] = field(
        default_factory=lambda: {"canonical": 0.45, "coloured": 0.12, "composites": 0.3, "other": 0.05, "photos": 0.08}
    )
    """Of the pools of pictures (`pools`): what the language model draws most is painted most."""
    feature_noise_share: float = 0.3
    """Share of pictures painted from semantic codes not quite their own (`variations`), as a language model writes them."""
    perceptual_images: int = 16
    """Pictures of a batch compared in the trunk's features too."""
    perceptual_weight: float = 0.3
    perceptual_taps: tuple[int, ...] = (2, 4, 10, 15)
    """Blocks of the trunk whose outputs are compared."""
    critic_weight: float = 0.0
    """Of looking true to a critic, which makes edges sharp; 0 for none."""
    critic_start: float = 0.6
    """Share of the stage after which it is asked. Before, it would only teach textures that nothing calls for."""


@dataclass(frozen=True)
class PixelTokenizerRecipe:
    """Knobs of all stages."""

    codebook: CodebookRecipe
    """Of the codebook that the decoder and language models get."""
    semantic: Schedule
    """Of the semantic queries."""
    decoder: DecoderRecipe
    geometry: PixelGeometry = field(default_factory=PixelGeometry)
    semantic_pool_shares: dict[str, float] = field(default_factory=lambda: {"drawings": 0.4, "composites": 0.1, "photos": 0.5})
    """Of the pools of pictures (`pools`) whose words are told."""
    feature_dropout: float = 0.15
    """Of the trunk's channels; the words of pictures in unseen styles are told better."""
    bag_of_words_weight: float = 0.25
    captioner_weight: float = 0.25
    vq_weight: float = 1.0
    quantization_ramp: float = 0.1
    """Share of the stage over which quantized vectors take the place of continuous ones, picture by picture. Codes
    mean nothing at first."""
    revive_every: int = 40
    """Steps between moving codebook rows that nothing uses."""
    num_words: int = 4000
    """Most frequent words that the codes have to tell."""


class BatchSource:
    """Draws numbers of samples: so many of each pool in every batch, in this order; training samples only."""

    def __init__(self, samples: Sequence[Sample], batch: int, shares: Mapping[str, float]) -> None:
        """
        Args:
            shares: of the pools (`pools`).
        """
        kept = np.array([number for number, sample in enumerate(samples) if not sample.held_out])
        pools = shared_pools([samples[number] for number in kept], shares)
        parts = np.array([share for _, share in pools])
        edges = np.rint(np.cumsum(parts / parts.sum()) * batch).astype(int)
        self.pools = [kept[pool] for pool, _ in pools]
        self.counts = np.diff(edges, prepend=0)

    def __call__(self, rng: np.random.Generator) -> NDArray[np.int64]:
        return np.concatenate([rng.choice(pool, n) for pool, n in zip(self.pools, self.counts, strict=True) if n])


class AuxiliaryHeads(nn.Module):
    """What reads words from semantic codes in training, and counts how often each row of the codebook is used."""

    def __init__(self, geometry: PixelGeometry, bag_words: int, list_words: int) -> None:
        super().__init__()
        count, width = geometry.semantic_queries, geometry.qformer_width
        self.bag = nn.Sequential(nn.Flatten(), nn.Linear(count * width, 2 * width), nn.GELU(), nn.Linear(2 * width, bag_words))
        self.reader = Reader(list_words, count, width, heads=geometry.qformer_heads)
        self.usage: Tensor
        self.register_buffer("usage", torch.zeros(geometry.codebook_size))

    def codes_in_use(self) -> int:
        """Rows that are used more than hardly ever."""
        return int((self.usage > REVIVED_BELOW * self.usage.mean()).sum())


class ReadingLoss(LossModule):
    """Semantic codes that tell words."""

    def __init__(self, model: PixelTokenizer, telling: AuxiliaryHeads, recipe: PixelTokenizerRecipe) -> None:
        super().__init__()
        self.model, self.telling, self.recipe = model, telling, recipe
        for part in (model.blocks_image, model.pixel_head):  # have nothing to learn yet
            part.requires_grad_(False)

    def adamw_modules(self) -> list[nn.Module]:
        return [self.telling.bag, self.telling.reader.head]

    def frozen_modules(self) -> list[nn.Module]:
        return [self.model.trunk]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z = self.model.semantic_features(batch["vision"])
        quantized = self.quantized(z, batch["revive"])
        chosen = torch.rand(len(z), 1, 1, device=z.device) < batch["done"] / self.recipe.quantization_ramp
        told = self.told(torch.where(chosen, quantized.vectors, z), batch)
        return told | {"vq": self.recipe.vq_weight * quantized.loss}

    def quantized(self, z: Tensor, revive: bool) -> Quantized:
        """Vectors (batch, n, code_dim) quantized, and counted.

        Args:
            revive: move rows of the codebook that nothing uses to where vectors are, before.
        """
        usage, quantizer = self.telling.usage, self.model.quantize
        if revive:
            quantizer.revive(usage, z.detach().flatten(0, 1), REVIVED_BELOW * usage.mean().item() + 1e-9)
        result = quantizer(z)
        if self.training:
            counted = torch.bincount(result.codes.flatten(), minlength=len(usage))
            usage.mul_(0.995).add_(counted, alpha=0.005)
        return result

    def told(self, vectors: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Losses of words, from semantic vectors."""
        told = self.model.told(vectors)
        bag = F.log_softmax(self.telling.bag(told).float(), -1)
        return {
            "words": -self.recipe.bag_of_words_weight * (batch["words"] * bag).sum(1).mean(),
            "reader": self.recipe.captioner_weight * self.telling.reader(told[batch["asked"]], batch["read"], batch["wanted"]),
        }


class DecoderLoss(LossModule):
    """What stands behind the codebook."""

    def __init__(self, model: PixelTokenizer, recipe: DecoderRecipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.looking = PerceptualLoss(model.trunk, recipe.perceptual_taps)
        channels = model.trunk.tap_channels(recipe.perceptual_taps)
        self.critic = Critic(channels) if recipe.critic_weight else None
        model.requires_grad_(False)
        for part in (model.decode_task_layer, model.blocks_image, model.pixel_head):
            part.requires_grad_(True)
        model.pos_embed_image.requires_grad_(True)

    def adamw_modules(self) -> list[nn.Module]:
        return [self.model.pixel_head.memory]  # too wide for Muon

    def frozen_modules(self) -> list[nn.Module]:
        return [self.model.trunk]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, truth = self.recipe, batch["pixels"]
        drawn = self.model.paint(self.model.quantize.embedding(batch["codes"])).float()
        some = slice(None, None, max(1, len(truth) // recipe.perceptual_images))  # of every kind, since kinds stand together
        found, wanted = self.looking(drawn[some], truth[some])
        losses = {"l1": F.l1_loss(drawn, truth), "look": recipe.perceptual_weight * distance(found, wanted)}
        if self.critic is not None and batch["done"] >= recipe.critic_start:
            losses["critic"], fooled = self.critic.losses(found, wanted)
            losses["fooled"] = recipe.critic_weight * fooled
        return losses


def train_pixel_tokenizer(
    paths: Sequence[Path],
    out: Path,
    recipe: PixelTokenizerRecipe,
    report: Report,
    images: Path | None = None,
    trunk_weights: Path | None = None,
    more: Sequence[Path] = (),
) -> None:
    """Train an image tokenizer on what `read_samples` reads, and write its checkpoint into `out`.

    Interrupted, the same call goes on at the last saved step.

    Args:
        more: pictures that only the decoder is trained on besides; no features of them are kept.
    """
    claim(out, "run", (*paths, *more, images), RUN_SIGNS)
    torch.manual_seed(recipe.semantic.seed)
    trunk = pretrained_trunk(trunk_weights)
    cache = build_cache(paths, out / CACHE_FOLDER, trunk, recipe.geometry, report, images)
    model = PixelTokenizer(recipe.geometry)
    model.trunk.load_state_dict(trunk.state_dict())
    model.trunk.requires_grad_(False)
    channels_last(model.pixel_head)
    model.key_dropout = recipe.feature_dropout
    if not (out / SEMANTIC_FOLDER / STATE).exists():  # else all of it comes from there
        report("closed forms: what tells most of the words, and most of the colours")
        measure_channels(model, cache)
        fit_glance(model, cache)
        fit_patches(model, cache)
    texts = TextTargets(cache, recipe)
    telling = AuxiliaryHeads(recipe.geometry, len(texts.bag.words), len(texts.list))
    train_reading(ReadingLoss(model, telling, recipe), texts, out, report)
    model = with_codebook(model.eval(), cache, out, recipe, report)
    report("decoder; from here on `tokenize` gives the codes that stay")
    painted = more_pictures(model, more, out / MORE_FOLDER.format(codebook_sum(model)), report, images) if more else None
    train_decoder(model, cache, painted, out, recipe.decoder, report)


def with_codebook(
    model: PixelTokenizer, cache: Cache, out: Path, recipe: PixelTokenizerRecipe, report: Report
) -> PixelTokenizer:
    """The tokenizer with its last codebook, written into `out`; what is there for this encoder stays as it is."""
    if is_run(out):
        kept = load_image_tokenizer(out)
        if kept.geometry == refitted_geometry(model.geometry, recipe.codebook) and encoder_sum(kept) == encoder_sum(model):
            channels_last(kept.pixel_head)
            return kept
    report("codebook: k-means")
    vectors = vectors_of_cache(model, cache, out / VECTORS_FILE)
    model = refitted(model, vectors[cache.rows(held_out=False)], recipe.codebook, recipe.semantic.seed)
    save_image_tokenizer(model, out)
    return model


class TextTargets:
    """Batches of what is seen and what is to be told of it."""

    def __init__(self, cache: Cache, recipe: PixelTokenizerRecipe) -> None:
        self.cache, self.bag = cache, WordTargets(cache.samples, recipe.num_words)
        rng = np.random.default_rng(recipe.semantic.seed)
        told = [caption(sample, rng) or "" for sample in cache.samples for _ in range(3) if not sample.held_out]
        self.list = WordList(told, recipe.num_words)

    def batch(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Of rows of the cache; texts of every second one are asked for."""
        asked = np.arange(int(rng.integers(2)), len(rows), 2)
        read, wanted = self.list.batch([caption(self.cache.samples[row // VIEWS], rng) for row in rows[asked]])
        return {
            "keys": keys_of(self.cache, rows),
            "vision": torch.from_numpy(self.cache.features[rows]),
            "words": self.bag((rows // VIEWS).tolist()),
            "asked": torch.from_numpy(asked),
            "read": read,
            "wanted": wanted,
        }

    def losses_unseen(self, objective: ReadingLoss) -> dict[str, float]:
        """Losses of words on held-out pictures, in eval mode."""
        rows = self.cache.rows(held_out=True)
        if not len(rows):
            return {}
        rng = np.random.default_rng(0)
        batch = self.batch(rng.choice(rows, UNSEEN), rng) | {"done": 1.0, "revive": False}
        device = objective.model.vision_mean.device
        placed = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        objective.eval()
        with torch.inference_mode():
            losses = ReadingLoss.forward(objective, placed)
        objective.train()
        return {f"unseen_{name}": losses[name].item() for name in ("words", "reader")}


def train_reading(objective: ReadingLoss, texts: TextTargets, out: Path, report: Report) -> None:
    """The semantic queries."""
    model, telling, recipe = objective.model, objective.telling, objective.recipe
    steps = recipe.semantic.steps
    source = BatchSource(texts.cache.samples, recipe.semantic.batch_size, recipe.semantic_pool_shares)

    def batch_of(step: int, rng: np.random.Generator) -> Batch:
        numbers = source(rng)
        rows = numbers * VIEWS + (rng.random(len(numbers)) < SECOND_VIEWS)
        return texts.batch(rows, rng) | {"done": step / steps, "revive": revived(step, recipe, steps)}

    def after(step: int) -> dict[str, float]:
        save_image_tokenizer(model, out)
        return texts.losses_unseen(objective) | {"codes_in_use": telling.codes_in_use()}

    Trainer(out / SEMANTIC_FOLDER, recipe.semantic, report).run(objective, batch_of, after)


def revived(step: int, recipe: PixelTokenizerRecipe, steps: int) -> bool:
    """Whether unused rows of the codebook are moved at this step: now and then, and not near the end."""
    return step % recipe.revive_every == 0 and step < 0.8 * steps


@dataclass(frozen=True)
class ExtraPictures:
    """Pictures that only the decoder is trained on."""

    samples: list[Sample]
    pixels: NDArray[np.uint8]
    """(samples, output_size, output_size, 3)."""
    codes: NDArray[np.int64]
    """(samples, codes_per_image)."""


def more_pictures(
    model: PixelTokenizer, paths: Sequence[Path], folder: Path, report: Report, images: Path | None = None
) -> ExtraPictures:
    """Pictures of `paths` with their codes; made once, a finished `folder` is opened instead.

    Raises:
        DataError: data cannot be read, or the folder was made of other data.
        ImageError: a picture cannot be read.
    """
    found = list(read_samples(paths, images))
    several = next((sample.key for sample, pictures in found if len(pictures) != 1), None)
    if several is not None:
        raise DataError(f"{several} has no picture or several; a decoder is trained on single pictures")
    keys = [sample.key for sample, _ in found]
    if not (folder / MORE_KEYS).exists():
        _fill_more(model, found, folder, report)
    elif (folder / MORE_KEYS).read_text("utf-8").splitlines() != keys:
        raise DataError(f"{folder} was made of other images than --decoder-data has now; remove it, or give the same")
    pixels, codes = np.load(folder / MORE_PIXELS, mmap_mode="r"), np.load(folder / MORE_CODES)
    return ExtraPictures([sample for sample, _ in found], pixels, codes)


def _fill_more(
    model: PixelTokenizer, found: Sequence[tuple[Sample, tuple[Picture, ...]]], folder: Path, report: Report
) -> None:
    geometry, preprocessing = model.geometry, preprocessing_of(model.geometry)
    size = geometry.output_size
    shape = (len(found), size, size, 3)
    require_disk_space(folder, math.prod(shape), "more pictures")
    pixels = np.lib.format.open_memmap(folder / MORE_PIXELS, "w+", np.uint8, shape)
    codes = np.empty((len(found), geometry.num_queries), np.int64)
    for start in range(0, len(found), MORE_AT_ONCE):
        some = found[start : start + MORE_AT_ONCE]
        squares = [view(load_picture(picture), geometry.image_size, None) for _, (picture,) in some]
        small = [square.resize((size, size), Image.Resampling.BICUBIC) for square in squares]
        pixels[start : start + len(some)] = np.stack([np.asarray(each) for each in small])
        with torch.inference_mode():
            codes[start : start + len(some)] = model.encode(torch.from_numpy(preprocessing(squares))).numpy()
        if start // MORE_AT_ONCE % 100 == 0:
            report(f"more pictures: {start:,} of {len(found):,}")
    pixels.flush()
    with replacing(folder / MORE_CODES) as partial, open(partial, "wb") as file:
        np.save(file, codes)
    with replacing(folder / MORE_KEYS) as partial:
        partial.write_text("".join(f"{sample.key}\n" for sample, _ in found), "utf-8")


def train_decoder(
    model: PixelTokenizer, cache: Cache, more: ExtraPictures | None, out: Path, recipe: DecoderRecipe, report: Report
) -> None:
    """What stands behind the codebook, on the codes that every picture has now."""
    model.eval()
    vectors = vectors_of_cache(model, cache, out / VECTORS_FILE)
    codes, samples, cached = codes_of(model, vectors[::VIEWS]), cache.samples, len(cache.samples)
    if more is not None:
        codes, samples = np.concatenate([codes, more.codes]), [*samples, *more.samples]
    every = torch.from_numpy(codes)
    semantic = model.geometry.semantic_queries
    variations = Variations(cache.samples, vectors[:, :semantic])
    source = BatchSource(samples, recipe.schedule.batch_size, recipe.pool_shares)
    codebook = copy.deepcopy(model.quantize).cpu()  # batches are made beside the training

    def batch_of(step: int, rng: np.random.Generator) -> Batch:
        numbers = source(rng)
        of_cache = numbers < cached
        shown, varied = every[numbers], (rng.random(len(numbers)) < recipe.feature_noise_share) & of_cache
        if varied.any():
            shown[varied, :semantic] = codebook.codes(torch.from_numpy(variations(numbers[varied] * VIEWS, rng)))
        pixels = np.empty((len(numbers), *cache.pixels.shape[1:]), np.uint8)
        pixels[of_cache] = cache.pixels[numbers[of_cache] * VIEWS]
        if more is not None:
            pixels[~of_cache] = more.pixels[numbers[~of_cache] - cached]
        return {
            "keys": [samples[number].key for number in numbers],
            "codes": shown,
            "pixels": torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2),
            "done": step / recipe.schedule.steps,
        }

    def after(step: int) -> None:
        save_image_tokenizer(model, out)
        write_sheet(model, cache, out / "sheets" / f"decoder-{step:06d}.png")

    folder = out / DECODER_FOLDER.format(codebook_sum(model))
    Trainer(folder, recipe.schedule, report).run(DecoderLoss(model, recipe), batch_of, after)


def keys_of(cache: Cache, rows: NDArray[np.int64]) -> list[str]:
    """Keys of the samples that rows of the cache belong to."""
    return [cache.samples[row // VIEWS].key for row in rows]


def codebook_sum(model: PixelTokenizer) -> int:
    """What tells one state of the codebook from another."""
    return zlib.crc32(model.quantize.embedding.weight.detach().cpu().numpy().tobytes())


@torch.inference_mode()
def vectors_of_cache(model: PixelTokenizer, cache: Cache, path: Path, batch: int = 256) -> NDArray[np.float32]:
    """What the encoder gives for every cached row, (rows, n, code_dim); kept at `path` for this very encoder."""
    encoder = encoder_sum(model)
    if path.exists():
        with np.load(path) as kept:
            if int(kept["encoder"]) == encoder:
                return kept["vectors"]
    found, device = [], model.vision_mean.device
    for start in range(0, len(cache.features), batch):
        vision = torch.from_numpy(cache.features[start : start + batch].astype(np.float32)).to(device)
        found.append(model.query_features(vision).float().cpu().numpy())
    vectors = np.concatenate(found)
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, vectors=vectors, encoder=encoder)
    return vectors


def encoder_sum(model: PixelTokenizer) -> int:
    """What tells one state of the encoder from another."""
    learnt = (model.encode_task_layer, model.glance, model.patches)
    parts = (model.query_tokens, *model.code_norm.buffers(), *(p for module in learnt for p in module.parameters()))
    return zlib.crc32(b"".join(part.detach().cpu().numpy().tobytes() for part in parts))


@torch.inference_mode()
def codes_of(model: PixelTokenizer, vectors: NDArray[np.float32], batch: int = 1024) -> NDArray[np.int64]:
    """Codes (rows, n) of what the encoder gave, (rows, n, code_dim)."""
    device = model.vision_mean.device
    parts = (vectors[start : start + batch] for start in range(0, len(vectors), batch))
    return np.concatenate([model.quantize.codes(torch.from_numpy(part).to(device)).cpu().numpy() for part in parts])


def codes_of_run(run: Path, variations: int, report: Report) -> tuple[CodeSpace, Iterator[CodeSample], Codebook]:
    """What an image is in a run, its samples with the codes of their views, and the codebook.

    Args:
        variations: how many other codes each sample is given besides (`Variations`).

    Raises:
        CheckpointError: the run has no image tokenizer.
        DataError: its cache of features is gone.
    """
    model = load_image_tokenizer(run)
    cache = open_cache(run / CACHE_FOLDER, model.geometry)
    report("codes: encoding what is in the cache")
    vectors, semantic = vectors_of_cache(model, cache, run / VECTORS_FILE), model.geometry.semantic_queries
    codes, rng = codes_of(model, vectors), np.random.default_rng(0)
    varied, others = Variations(cache.samples, vectors[:, :semantic]), []
    for _ in range(variations):
        rows = np.arange(len(cache.samples)) * VIEWS + rng.integers(VIEWS, size=len(cache.samples))
        placed = codes[rows, semantic:]
        others.append(np.concatenate([codes_of(model, varied(rows, rng)), placed], 1))

    def samples() -> Iterator[CodeSample]:
        for number, sample in enumerate(cache.samples):
            first, *views = codes[number * VIEWS : (number + 1) * VIEWS]
            yield CodeSample(sample, (first,), (*views, *(other[number] for other in others)))

    space = CodeSpace(model.geometry.codebook_size, model.geometry.num_queries)
    return space, samples(), Codebook(model.quantize.embedding.weight.detach().float().numpy(), model.geometry.own_rows)


def encoder_of_run(run: Path) -> tuple[CodeSpace, Callable[[Sequence[Image.Image]], NDArray[np.int64]]]:
    """What an image is in a run, and its encoder: pictures -> codes (pictures, codes_per_image)."""
    model = load_image_tokenizer(run)
    preprocessing = preprocessing_of(model.geometry)

    def encode(images: Sequence[Image.Image]) -> NDArray[np.int64]:
        with torch.inference_mode():
            return model.encode(torch.from_numpy(preprocessing(images))).numpy()

    return CodeSpace(model.geometry.codebook_size, model.geometry.num_queries), encode


def decoder_of_run(run: Path) -> Callable[[NDArray[np.int64]], Image.Image]:
    """Codes (codes_per_image,) -> picture, by the tokenizer of a run."""
    model = load_image_tokenizer(run)

    def decode(codes: NDArray[np.int64]) -> Image.Image:
        with torch.inference_mode():
            return to_images(model.decode(torch.from_numpy(codes)[None]).numpy())[0]

    return decode


def measure_channels(model: PixelTokenizer, cache: Cache, sample: int = 1000) -> None:
    """Set mean and spread of the trunk's channels from some rows of the cache."""
    step = max(1, len(cache.features) // sample)
    some = torch.from_numpy(cache.features[::step].astype(np.float32))
    model.vision_mean.copy_(some.mean((0, 1)))
    model.vision_std.copy_(some.std((0, 1)).clamp(min=1e-4))


@torch.inference_mode()
def reconstruct(model: PixelTokenizer, features: NDArray[np.float16]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes (m, n) and pixels (m, 3, H, W) of cached features (m, tokens, vit_width)."""
    vision = torch.from_numpy(features.astype(np.float32)).to(model.vision_mean.device)
    codes = model.quantize.codes(model.query_features(vision))
    return codes.cpu().numpy(), model.decode(codes).cpu().numpy()


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
    with replacing(path) as partial:
        sheet.save(partial, "PNG")
