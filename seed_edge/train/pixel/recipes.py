"""Recipe of an image tokenizer that decodes to pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

from seed_edge.models.config import PixelGeometry
from seed_edge.train.pixel.codebook import CodebookRecipe
from seed_edge.train.recipe import Schedule


@dataclass(frozen=True)
class DecoderRecipe:
    """Training of the decoder."""

    schedule: Schedule
    pool_shares: dict[str, float] = field(
        default_factory=lambda: {
            "canonical": 0.45,
            "coloured": 0.12,
            "composites": 0.3,
            "other": 0.05,
            "photos": 0.08,
        }
    )
    """Weights of the pools of samples (`data.subsets.POOLS`)."""
    feature_noise_share: float = 0.3
    """Share of images whose semantic codes are varied (`feature_noise`), as a language model varies them; in
    [0, 1].
    """
    perceptual_images: int = 16
    """Images of a batch that the perceptual loss compares."""
    perceptual_weight: float = 0.3
    perceptual_taps: tuple[int, ...] = (2, 4, 10, 15)
    """Numbers of the trunk's blocks whose outputs are compared."""
    critic_weight: float = 0.0
    """Weight of the adversarial loss, which sharpens edges; 0: no critic."""
    critic_start: float = 0.6
    """Fraction of the stage after which the critic is used; earlier it only causes textures that the images
    do not have.
    """


@dataclass(frozen=True)
class PixelTokenizerRecipe:
    """Training of an image tokenizer that decodes to pixels."""

    codebook: CodebookRecipe
    """Size of the final codebook."""
    semantic: Schedule
    """Training of the semantic queries."""
    decoder: DecoderRecipe
    geometry: PixelGeometry = field(default_factory=PixelGeometry)
    semantic_pool_shares: dict[str, float] = field(
        default_factory=lambda: {"drawings": 0.4, "composites": 0.1, "photos": 0.5}
    )
    """Weights of the pools of samples for the semantic queries."""
    feature_dropout: float = 0.15
    """Dropout of the trunk's channels, in [0, 1); improves words of images in unseen styles."""
    bag_of_words_weight: float = 0.25
    captioner_weight: float = 0.25
    vq_weight: float = 1.0
    quantization_ramp: float = 0.1
    """Fraction of the stage during which quantized vectors gradually replace continuous ones,
    image by image.
    """
    revive_every: int = 40
    """Steps between two revivals of unused codebook rows."""
    num_words: int = 4000
    """Vocabulary size of the words that the codes have to predict."""
