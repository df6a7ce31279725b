"""Replay: images that a model draws before it is trained further, added to the training data against
forgetting.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from seed_edge.data.code_shards import CodeSample
from seed_edge.data.phrasing import with_article
from seed_edge.data.samples import Sample
from seed_edge.data.subsets import CANONICAL_STYLE
from seed_edge.data.synonyms import EVERYDAY_NAMES
from seed_edge.train.language.examples import ExampleBuilder
from seed_edge.train.language.preview import evaluating, sample_codes


def replay_samples(
    model: PreTrainedModel, builder: ExampleBuilder, count: int, seed: int
) -> list[CodeSample]:
    """Draw `count` everyday things with the current model, every second one as a photo, the others as
    drawings.

    The model is trained on these samples and the new ones; its original training data is not needed.
    """
    rng, samples = np.random.default_rng(seed), []
    names = rng.choice([synonyms.split(", ")[0] for synonyms in EVERYDAY_NAMES.values()], count)
    with torch.random.fork_rng(), evaluating(model):
        for number, name in enumerate(map(str, names)):
            style = CANONICAL_STYLE if number % 2 == 0 else None
            prompt = with_article(name) if style else f"a photo of {with_article(name)}"
            sample = Sample(f"replay-{number}", label=name, style=style)
            samples.append(CodeSample(sample, (sample_codes(model, builder, prompt, number),)))
    return samples
