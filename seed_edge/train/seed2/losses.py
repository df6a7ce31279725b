"""Losses of SEED-2: contrastive (stage 1); codebook, image embedding and reconstruction of the queries (stage
2).

Sources: SEED, Ge et al. 2023, arXiv:2307.08041; BLIP-2, Li et al. 2023, arXiv:2301.12597.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seed_edge.models.config import SeedGeometry
from seed_edge.models.image_tokenizer import SeedTokenizer
from seed_edge.models.qformer import CausalQFormer

BERT_VOCAB = 30523
"""Number of word pieces of bert-base-uncased, plus one of BLIP-2."""
SHARED_WIDTH = 256
TEMPERATURE = 0.07
LABEL_SMOOTHING = 0.1
VQ_WEIGHT, IMAGE_WEIGHT, RECONSTRUCTION_WEIGHT = 5.0, 0.5, 2.0


class ContrastiveQFormer(nn.Module):
    """Stage 1: a causal Q-Former with its text branch, and projections of both into a shared space."""

    def __init__(self, geometry: SeedGeometry, text_vocab: int = BERT_VOCAB) -> None:
        super().__init__()
        width = geometry.qformer_width
        self.query_tokens = nn.Parameter(torch.randn(1, geometry.num_queries, width) * 0.02)
        self.ln_vision = nn.LayerNorm(geometry.vit_width)
        self.Qformer = CausalQFormer(geometry, text_vocab)
        self.vision_proj = nn.Linear(width, SHARED_WIDTH)
        self.text_proj = nn.Linear(width, SHARED_WIDTH)
        self.temp = nn.Parameter(torch.tensor(TEMPERATURE))

    def of_images(self, vision_tokens: Tensor) -> Tensor:
        """Trunk output (batch, tokens, vit_width) -> unit vectors (batch, 256) of the last query."""
        queries = self.Qformer(self.query_tokens, self.ln_vision(vision_tokens))
        return F.normalize(self.vision_proj(queries[:, -1]), dim=-1)

    def of_texts(self, ids: Tensor, present: Tensor) -> Tensor:
        """Word pieces (batch, length), [CLS] first -> unit vectors (batch, 256)."""
        return F.normalize(self.text_proj(self.Qformer.read(ids, present)[:, 0]), dim=-1)

    def loss(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return the symmetric contrastive loss, a scalar; row i of `images` and row i of `texts` are a pair,
        all other rows are negatives.
        """
        scores, targets = images @ texts.T / self.temp, torch.arange(len(images), device=images.device)
        directions = [
            F.cross_entropy(s, targets, label_smoothing=LABEL_SMOOTHING) for s in (scores, scores.T)
        ]
        return torch.stack(directions).mean()


def code_losses(model: SeedTokenizer, vision_tokens: Tensor, image_embeds: Tensor) -> dict[str, Tensor]:
    """Return the weighted losses of stage 2 by name: codebook and de-tokenizer.

    Args:
        model: created with `training=True`; trunk, `ln_vision` and Q-Former are not trained.
        vision_tokens: trunk output (batch, tokens, vit_width).
        image_embeds: embeddings of CLIP ViT-H (batch, image_embed_dim), the input of the diffusion.
    """
    with torch.no_grad():
        queries = model.Qformer(model.query_tokens, model.ln_vision(vision_tokens))
    z = model.encode_task_layer(queries)
    quantized = model.quantize(z)
    rows = model.quantize.embedding(quantized.codes)
    # the weights of commitment and codebook loss are swapped compared with `VectorQuantizer`
    vq = F.mse_loss(z, rows.detach()) + 0.25 * F.mse_loss(rows, z.detach())
    similarity = F.cosine_similarity(model.reconstruct(quantized.vectors), queries, dim=-1)
    return {
        "vq": VQ_WEIGHT * vq,
        "image": IMAGE_WEIGHT * F.mse_loss(model.embed(quantized.vectors), image_embeds),
        "reconstruction": RECONSTRUCTION_WEIGHT * (1 - similarity).mean(),
    }
