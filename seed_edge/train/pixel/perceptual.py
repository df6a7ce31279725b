"""What the frozen trunk sees in a drawn picture: how far it is from the true one, and whether it looks drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from seed_edge.models.efficientnet import EfficientNetLite
from seed_edge.models.memory_layout import channels_last


class PerceptualLoss(nn.Module):
    """Frozen trunk features of pictures, each tap scaled by the spread it has on true ones."""

    def __init__(self, trunk: EfficientNetLite, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.taps = taps
        self.trunk = channels_last(trunk)

    def forward(self, drawn: Tensor, truth: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features of each tap, of drawn and of true pictures (batch, 3, S, S) in [0, 1]."""
        with torch.no_grad():
            wanted = self._taps(truth)
        scales = [tap.var().clamp(min=1e-6).rsqrt() for tap in wanted]
        pairs = zip(self._taps(drawn), wanted, scales, strict=True)
        found, known = zip(*((a * scale, b * scale) for a, b, scale in pairs), strict=True)
        return list(found), list(known)

    def _taps(self, pixels: Tensor) -> list[Tensor]:
        normalised = pixels.mul(2).sub(1).contiguous(memory_format=torch.channels_last)
        return [tap.float() for tap in self.trunk.taps(normalised, self.taps)]


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean squared distance over all taps."""
    return torch.stack([F.mse_loss(a, b) for a, b in zip(found, wanted, strict=True)]).mean()


class Critic(nn.Module):
    """Learns to tell drawn pictures from true ones, place by place, from trunk features.

    A projected GAN (Sauer et al. 2021, arXiv:2111.01007), with hinge losses.
    """

    def __init__(self, channels: Sequence[int], width: int = 64) -> None:
        """
        Args:
            channels: of each tap.
        """
        super().__init__()
        self.judges = nn.ModuleList(
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
        """Scores of every place of every tap; high where it looks true."""
        return [judge(tap).float() for judge, tap in zip(self.judges, features, strict=True)]

    def losses(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What the critic learns from, and what the decoder learns from, which leaves the critic as it is."""
        told = [F.relu(1 - real).mean() for real in self(wanted)]
        told += [F.relu(1 + fake).mean() for fake in self([tap.detach() for tap in found])]
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        fooled = [-fake.mean() for fake in functional_call(self, frozen, (list(found),))]
        return torch.stack(told).mean(), torch.stack(fooled).mean()
