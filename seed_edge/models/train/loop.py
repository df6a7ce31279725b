"""What both training stages share: schedule, progress line, log, atomic checkpoints, resume."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seed_edge.errors import DataError

STATE = "state.pt"
MUON_RATE = 3.0
"""Learning rate of matrices, in multiples of everything else's."""


def learning_rate(step: int, steps: int, peak: float, warmup: int, floor: float = 0.05) -> float:
    """Linear warm-up, then cosine from `peak` down to `floor * peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizers_for(
    modules: Iterable[nn.Module], weight_decay: float, heads: Iterable[nn.Module] = ()
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between layers, AdamW for everything else; both are driven by one learning rate.

    Muon (Jordan 2024; scaled to AdamW's step as in Liu et al. 2025, arXiv:2502.16982) needs far fewer steps.
    Convolutions decay too; norms, biases, tables, heads and learnt positions do not.

    Args:
        heads: modules of `modules` that end in a distribution over words or ids; AdamW's.
    """
    of_heads = {id(parameter) for head in heads for parameter in head.parameters()}
    matrices, convolutions, others = [], [], []
    for module in modules:
        linear = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}
        for parameter in module.parameters():
            if not parameter.requires_grad:
                continue
            if id(parameter) in linear and id(parameter) not in of_heads:
                matrices.append(parameter)
            else:
                (convolutions if parameter.ndim == 4 else others).append(parameter)
    groups = [{"params": convolutions, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
    muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]


def shapes_of(optimizers: list[torch.optim.Optimizer]) -> list[list[list[int]]]:
    """Shapes of the parameters of each optimizer, in its order."""
    return [[list(p.shape) for group in o.param_groups for p in group["params"]] for o in optimizers]


class Loop:
    """Runs steps `first .. steps`, logging and checkpointing; an interrupted run goes on where it was.

    The random numbers of step n depend on the seed and on n alone, so a resumed run sees the same batches.
    """

    def __init__(self, folder: Path, steps: int, seed: int, report: Callable[[str], None], every: int = 20) -> None:
        self.folder, self.steps, self.seed, self.report, self.every = folder, steps, seed, report, every
        folder.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        modules: dict[str, nn.Module],
        optimizers: list[torch.optim.Optimizer],
        losses_of: Callable[[int, np.random.Generator], dict[str, Tensor]],
        peak: float,
        warmup: int,
        *,
        save_every: int = 200,
        after: Callable[[int], None] | None = None,
    ) -> None:
        """Train.

        Args:
            modules: everything with weights, by name; saved and restored.
            losses_of: (step, generator) -> losses by name; their sum is minimised.
            after: called with the step after each checkpoint.

        Raises:
            DataError: a loss became NaN or infinite; the step is named.
        """
        first = self._resume(modules, optimizers)
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        started, sums, count = time.monotonic(), {}, 0
        with open(self.folder / "log.jsonl", "a") as log:
            for step in range(first, self.steps):
                rate = learning_rate(step, self.steps, peak, warmup)
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = rate * (MUON_RATE if isinstance(optimizer, torch.optim.Muon) else 1)
                losses = losses_of(step, np.random.default_rng((self.seed, step)))
                total = torch.stack(list(losses.values())).sum()
                if not torch.isfinite(total):
                    values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
                    raise DataError(f"step {step}: the loss is not finite ({values}); lower --rate, or look at the data")
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
                total.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                for optimizer in optimizers:
                    optimizer.step()
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value.item()
                count += 1
                if (step + 1) % self.every == 0 or step + 1 == self.steps:
                    means = {name: round(value / count, 5) for name, value in sums.items()}
                    self._tell(log, step + 1, means, (time.monotonic() - started) / (step + 1 - first), rate)
                    sums, count = {}, 0
                if (step + 1) % save_every == 0 or step + 1 == self.steps:
                    self._save(step + 1, modules, optimizers)
                    if after is not None:
                        after(step + 1)

    def _tell(self, log: Any, step: int, means: dict[str, float], pace: float, rate: float) -> None:
        left = pace * (self.steps - step)
        record = {"step": step, **means, "rate": rate, "seconds_per_step": round(pace, 3)}
        log.write(json.dumps(record) + "\n")
        log.flush()
        text = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        self.report(f"step {step:,} of {self.steps:,}  {text}  {pace:.2f} s/step  {left / 60:.0f} min left")

    def _save(self, step: int, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> None:
        state = {
            "step": step,
            "seed": self.seed,
            "modules": {name: module.state_dict() for name, module in modules.items()},
            "shapes": shapes_of(optimizers),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        partial = self.folder / (STATE + ".partial")
        torch.save(state, partial)
        os.replace(partial, self.folder / STATE)

    def _resume(self, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> int:
        path = self.folder / STATE
        if not path.exists():
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["seed"] != self.seed:
            raise DataError(f"{path} was trained with seed {state['seed']}; use --seed {state['seed']} or another --out")
        if state["shapes"] != shapes_of(optimizers):  # optimizers know parameters by their order alone
            raise DataError(f"{path} was written by a version whose model is ordered otherwise; start anew with another --out")
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.report(f"resuming at step {state['step']:,}")
        return int(state["step"])
