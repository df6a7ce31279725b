"""Perceptual loss and critic: both compare images in the features of the frozen trunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from seed_edge.models.efficientnet import EfficientNetLite
from seed_edge.models.memory_layout import channels_last


class TrunkFeatures(nn.Module):
    """Frozen trunk features of images, each tap divided by its standard deviation on the target images."""

    def __init__(self, trunk: EfficientNetLite, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.taps = taps
        self.trunk = channels_last(trunk)

    def forward(self, decoded: Tensor, truth: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features of each tap, of decoded and of target images, both (batch, 3, S, S) in [0, 1]."""
        with torch.no_grad():
            target_taps = self._taps(truth)
        scales = [tap.var().clamp(min=1e-6).rsqrt() for tap in target_taps]
        pairs = zip(self._taps(decoded), target_taps, scales, strict=True)
        features, target_features = zip(*((a * scale, b * scale) for a, b, scale in pairs), strict=True)
        return list(features), list(target_features)

    def _taps(self, pixels: Tensor) -> list[Tensor]:
        normalised = pixels.mul(2).sub(1).contiguous(memory_format=torch.channels_last)
        return [tap.float() for tap in self.trunk.taps(normalised, self.taps)]


def perceptual_distance(features: Sequence[Tensor], target_features: Sequence[Tensor]) -> Tensor:
    """Return the mean squared distance over all taps."""
    return torch.stack([F.mse_loss(a, b) for a, b in zip(features, target_features, strict=True)]).mean()


class Critic(nn.Module):
    """Discriminator of decoded and true images at each position, from trunk features.

    A projected GAN (Sauer et al. 2021, arXiv:2111.01007), with hinge losses.
    """

    def __init__(self, channels: Sequence[int], width: int = 64) -> None:
        """
        Args:
            channels: number of channels of each tap.
        """
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(count, width, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 1, 1),
            )
            for count in channels
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Scores of each position of each tap; high for true images."""
        return [head(tap).float() for head, tap in zip(self.heads, features, strict=True)]

    def losses(self, features: Sequence[Tensor], target_features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss of the critic, and that of the decoder, which has no gradient in the critic."""
        losses = [F.relu(1 - real).mean() for real in self(target_features)]
        losses += [F.relu(1 + fake).mean() for fake in self([tap.detach() for tap in features])]
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        adversarial = [-fake.mean() for fake in functional_call(self, frozen, (list(features),))]
        return torch.stack(losses).mean(), torch.stack(adversarial).mean()
