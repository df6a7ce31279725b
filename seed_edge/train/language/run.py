"""The training run of a language model: batches, held-out losses, checkpoints and previews."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from seed_edge.errors import DataError
from seed_edge.train.language.checkpoints import save_checkpoint
from seed_edge.train.language.examples import ExampleBuilder, Mixture, collated
from seed_edge.train.language.loss import LanguageLoss
from seed_edge.train.language.preview import Preview, evaluating, write_preview
from seed_edge.train.recipe import Schedule
from seed_edge.train.trainer import Batch, Report, Trainer

HELD_OUT_BATCHES = 4
"""Batches of held-out samples whose loss is measured at each checkpoint."""
STATE_FOLDER = "state"
"""Folder within the output folder: state of an interrupted run, and the log."""


def train_language_model(
    loss_module: LanguageLoss,
    builder: ExampleBuilder,
    mixture_of: Callable[[bool], Mixture],
    schedule: Schedule,
    max_length: int,
    out: Path,
    report: Report,
    preview: Preview | None,
    checkpoint_weights: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Train on the samples that are not held out; at each checkpoint measure the loss on some held-out
    batches.

    Args:
        mixture_of: whether samples are held out -> the mixture of these samples.
        max_length: maximum number of ids of an example; longer ones are cut.
        checkpoint_weights: context in which the model is saved, measured and previewed.

    Raises:
        DataError: no sample fits the tasks, or a loss is not finite.
    """

    def batch_from(mixture: Mixture, rng: np.random.Generator) -> Batch:
        keys, examples = zip(*(mixture.example(rng) for _ in range(schedule.batch_size)), strict=True)
        ids, labels = collated(examples, max_length)
        return {"keys": keys, "ids": ids, "labels": labels}

    model, training = loss_module.model, mixture_of(False)
    try:
        held_out = mixture_of(True)
    except DataError:  # no sample is held out
        held_out_batches = []
    else:
        held_out_batches = [
            batch_from(held_out, np.random.default_rng(number)) for number in range(HELD_OUT_BATCHES)
        ]

    def batch_of(step: int, rng: np.random.Generator) -> Batch:
        batch = batch_from(training, rng)
        return batch if loss_module.reward is None else batch | loss_module.reward.batch(rng)

    def after(step: int) -> dict[str, float]:
        with checkpoint_weights(), evaluating(model):
            save_checkpoint(model, out)
            if preview is not None:
                write_preview(model, builder, preview, out / "sheets" / f"{step:06d}.png")
            return held_out_losses(loss_module, held_out_batches)

    Trainer(out / STATE_FOLDER, schedule, report).run(loss_module, batch_of, after)


def held_out_losses(loss_module: LanguageLoss, batches: Sequence[Batch]) -> dict[str, float]:
    """Return the mean of each loss over `batches`, named `held_out_*`; empty without batches."""
    device = loss_module.model.device

    def to_device(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    losses = [loss_module({name: to_device(value) for name, value in batch.items()}) for batch in batches]
    return {
        f"held_out_{name}": float(np.mean([values[name].item() for values in losses]))
        for name in (losses or [{}])[0]
    }
