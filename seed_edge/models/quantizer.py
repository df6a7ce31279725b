"""Vector quantizer: maps each vector to its code, the number of the nearest codebook row.

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
    """Pulls vectors to their rows. SEED-2 was trained with 1 here and 0.25 below, the "legacy" order of
    taming-transformers.
    """
    codebook_weight = 1.0
    """Pulls rows to their vectors."""

    def __init__(self, codebook_size: int, code_dim: int, own_rows: tuple[int, int] = (0, 0)) -> None:
        """
        Args:
            own_rows: number of leading queries that have separate rows, and number of these rows per query.
                They are the first rows, in the order of the queries; the other queries share the rest.
        """
        super().__init__()
        self.own_rows = own_rows
        self.embedding = nn.Embedding(codebook_size, code_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)

    def codes(self, z: Tensor) -> Tensor:
        """Return the codes (batch, n) of vectors (batch, n, code_dim). Distances are computed in fp32, since
        half precision causes ties.
        """
        weight, (queries, rows) = self.embedding.weight.float(), self.own_rows
        first_shared = queries * rows
        shared = _nearest(z[:, queries:] if first_shared else z, weight[first_shared:]) + first_shared
        if not first_shared:
            return shared
        tables = weight[:first_shared].unflatten(0, (queries, rows))[: z.shape[1]]
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
        """Move rows used less than `threshold` onto random vectors of `z` (m, code_dim), in place.

        Args:
            usage: running count per row, (codebook_size,); raised to the mean for moved rows, in place.

        Returns:
            The number of moved rows.
        """
        dead = torch.nonzero(usage < threshold).flatten()
        if len(dead):
            chosen = torch.randint(len(z), (len(dead),), device=z.device)
            self.embedding.weight[dead] = z[chosen].to(self.embedding.weight.dtype)
            if distributed.is_initialized():  # each process has different images
                distributed.broadcast(self.embedding.weight, 0)
            usage[dead] = usage.mean()
        return len(dead)


def _nearest(z: Tensor, rows: Tensor) -> Tensor:
    """Return the number of the nearest of `rows` (..., m, code_dim) for each vector (..., n, code_dim)."""
    # |z|^2 is the same for all rows
    distance = rows.square().sum(-1).unsqueeze(-2) - 2 * (z.float() @ rows.transpose(-1, -2))
    return distance.argmin(-1)
