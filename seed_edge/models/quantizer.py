"""Vector quantizer: each vector becomes the number of the nearest codebook row (its code).

Source: van den Oord et al. 2017, arXiv:1711.00937 (straight-through estimator, loss weights).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


@dataclasses.dataclass
class Quantized:
    """Result of `VectorQuantizer.forward`."""

    vectors: Tensor
    """Codebook rows, (batch, n, code_dim), with the gradient of the input (straight-through)."""
    codes: Tensor
    """(batch, n) int64, each in [0, codebook_size)."""
    loss: Tensor
    """Weighted sum of commitment loss and codebook loss; a scalar."""


class VectorQuantizer(nn.Module):
    """Nearest row by squared Euclidean distance; no normalisation, no sampling."""

    commitment_weight = 0.25
    """Pulls vectors to their rows. SEED-2 was trained with 1 here and 0.25 below: taming's "legacy" order."""
    codebook_weight = 1.0
    """Pulls rows to their vectors."""

    def __init__(self, codebook_size: int, code_dim: int, own: tuple[int, int] = (0, 0)) -> None:
        """
        Args:
            own: how many queries, the first ones, have rows of their own, and how many each. Theirs are the
            first rows, in
                order; what is left over is shared by the other queries.
        """
        super().__init__()
        self.own = own
        self.embedding = nn.Embedding(codebook_size, code_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)

    def codes(self, z: Tensor) -> Tensor:
        """Codes of vectors (batch, n, code_dim). The distance is computed in fp32: half precision
        makes ties.
        """
        weight, (queries, rows) = self.embedding.weight.float(), self.own
        taken = queries * rows
        shared = _nearest(z[:, queries:] if taken else z, weight[taken:]) + taken
        if not taken:
            return shared
        tables = weight[:taken].unflatten(0, (queries, rows))[: z.shape[1]]
        own = _nearest(z[:, :queries].unsqueeze(2), tables).squeeze(2)
        return torch.cat([own + torch.arange(own.shape[1], device=z.device) * rows, shared], 1)

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            codes = self.codes(z)
        rows = self.embedding(codes)
        commitment, codebook = F.mse_loss(z, rows.detach()), F.mse_loss(rows, z.detach())
        loss = self.commitment_weight * commitment + self.codebook_weight * codebook
        return Quantized(z + (rows - z).detach(), codes, loss)

    @torch.no_grad()
    def revive(self, usage: Tensor, z: Tensor, threshold: float) -> int:
        """Move rows used less than `threshold` onto vectors drawn from `z` (m, code_dim); random numbers are
        torch's.

        Args:
            usage: running count per row, (codebook_size,); raised to the mean for moved rows, in place.

        Returns:
            How many rows moved.
        """
        dead = torch.nonzero(usage < threshold).flatten()
        if len(dead):
            chosen = torch.randint(len(z), (len(dead),), device=z.device)
            self.embedding.weight[dead] = z[chosen].to(self.embedding.weight.dtype)
            if distributed.is_initialized():  # every process saw other pictures
                distributed.broadcast(self.embedding.weight, 0)
            usage[dead] = usage.mean()
        return len(dead)


def _nearest(z: Tensor, rows: Tensor) -> Tensor:
    """Number of the nearest of `rows` (..., m, code_dim) for vectors (..., n, code_dim)."""
    distance = rows.square().sum(-1).unsqueeze(-2) - 2 * (
        z.float() @ rows.transpose(-1, -2)
    )  # |z|^2 is the same for all rows
    return distance.argmin(-1)
