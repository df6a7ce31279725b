"""The training loop: devices, learning rate, optimizers, progress, log, checkpoints and resumption.

Runs on `accelerate`: one CPU, one GPU, or several processes under its launcher (`accelerate launch -m
seed_edge train ...`). It trains a `LossModule`, whose `forward` returns losses by name; batches are made in
another thread.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from seed_edge.atomic import replacing
from seed_edge.errors import DataError
from seed_edge.train.recipe import Schedule

STATE, LOG = "state.pt", "log.jsonl"
MUON_LR_SCALE = 3.0
"""Learning rate of the matrices that Muon trains, in multiples of `Schedule.learning_rate`."""
NAMED_KEYS = 8
"""Maximum number of samples that an error message names."""

Report = Callable[[str], None]
"""Function that outputs a line of progress."""

Batch = dict[str, Any]
"""Tensors and other values by name; `keys` names the samples."""


class LossModule(nn.Module):
    """Base class of training objectives: the trained module and its losses."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name; their sum is minimised."""
        raise NotImplementedError

    def adamw_modules(self) -> list[nn.Module]:
        """Modules whose matrices AdamW trains instead of Muon, such as output heads."""
        return []

    def frozen_modules(self) -> list[nn.Module]:
        """Modules whose frozen parameters are not part of saved states, since they come from a file."""
        return []


def learning_rate_at(step: int, schedule: Schedule) -> float:
    """Return the learning rate at a step: linear warm-up, then cosine decay to `min_lr_ratio` of the peak."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return schedule.learning_rate * (
        schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    )


def optimizers_for(loss_module: LossModule, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Return Muon for matrices of linear layers and AdamW for all other parameters, or AdamW for all.

    Muon (Jordan 2024; scaled to AdamW's step as in Liu et al. 2025, arXiv:2502.16982) needs far fewer steps.
    Weight decay applies to these matrices and to convolutions, not to norms, biases, embeddings, heads and
    learnt positions. Frozen parameters are left out.
    """
    adamw_only = {id(parameter) for head in loss_module.adamw_modules() for parameter in head.parameters()}
    linear = {id(module.weight) for module in loss_module.modules() if isinstance(module, nn.Linear)}
    matrices: list[nn.Parameter] = []
    convolutions: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in loss_module.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in linear and id(parameter) not in adamw_only:
            matrices.append(parameter)
        else:
            (convolutions if parameter.ndim == 4 else others).append(parameter)
    decayed = convolutions if schedule.optimizer == "muon" else [*matrices, *convolutions]
    groups = [
        {"params": decayed, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=0.0, betas=schedule.betas, eps=schedule.eps
    )
    if schedule.optimizer == "adamw" or not matrices:
        return [adamw]
    muon = torch.optim.Muon(
        matrices, lr=0.0, weight_decay=schedule.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adamw]


def duration(seconds: float) -> str:
    """Return a time in hours and minutes, or in minutes and seconds: `2 h 05 min`, `7 min 30 s`, `9 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def shapes_of(optimizers: list[torch.optim.Optimizer]) -> list[list[list[int]]]:
    """Return the shapes of the parameters of each optimizer, in its order."""
    return [[list(p.shape) for group in o.param_groups for p in group["params"]] for o in optimizers]


class Trainer:
    """Trains a `LossModule` to the end of its schedule, and resumes interrupted runs.

    The random numbers of a step depend only on the seed and the step, so a resumed run equals an
    uninterrupted one.
    """

    def __init__(self, folder: Path, schedule: Schedule, report: Report, later_stages: str = "") -> None:
        """
        Args:
            later_stages: names of the stages that follow. Their time cannot be estimated from this stage, so
            that
                progress lines give the time left of this stage only and then these names.
        """
        self.folder, self.schedule, self.report, self.later_stages = folder, schedule, report, later_stages
        self.accelerator = Accelerator()
        folder.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        loss_module: LossModule,
        batch_of: Callable[[int, np.random.Generator], Batch],
        after: Callable[[int], Mapping[str, float] | None] | None = None,
    ) -> None:
        """Train to the end of the schedule.

        Args:
            loss_module: moved to the device; trained in place.
            batch_of: step and random generator -> a batch of this process.
            after: called with the step after each checkpoint, by the first process; the figures that it
                returns are logged.

        Raises:
            DataError: a loss is not finite (step and samples are named), or the saved state is that of
                another run.
        """
        accelerator, schedule = self.accelerator, self.schedule
        loss_module.to(accelerator.device)
        optimizers = optimizers_for(loss_module, schedule)
        factors = [MUON_LR_SCALE, schedule.embedding_lr_scale] if len(optimizers) > 1 else [1.0]
        first = self._resume(loss_module, optimizers)
        wrapped = accelerator.prepare_model(loss_module)
        parameters = [
            p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]
        ]
        started, count, batches = time.monotonic(), 0, self._batches(batch_of, first)
        sums: dict[str, float] = {}
        with open(self.folder / LOG, "a") if accelerator.is_main_process else nullcontext() as log:
            for step in range(first, schedule.steps):
                rate = learning_rate_at(step, schedule)
                for optimizer, factor in zip(optimizers, factors, strict=True):
                    for group in optimizer.param_groups:
                        group["lr"] = rate * factor
                for name, value in self._gradients(wrapped, batches, step).items():
                    sums[name] = sums.get(name, 0.0) + value
                count += 1
                torch.nn.utils.clip_grad_norm_(parameters, schedule.max_grad_norm)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                last = step + 1 == schedule.steps
                if (step + 1) % schedule.log_every == 0 or last:
                    means = self._means({name: value / count for name, value in sums.items()})
                    if log is not None:
                        self._log_step(
                            log, step + 1, means, (time.monotonic() - started) / (step + 1 - first), rate
                        )
                    sums, count = {}, 0
                if (step + 1) % schedule.save_every == 0 or last:
                    if accelerator.is_main_process:
                        self._save(step + 1, loss_module, optimizers)
                        self._log_figures(log, step + 1, after(step + 1) if after is not None else None)
                    accelerator.wait_for_everyone()

    def _gradients(
        self, loss_module: nn.Module, batches: Iterator[tuple[Batch, int]], step: int
    ) -> dict[str, float]:
        """Accumulate the mean gradient of the batches of a step in the parameters; return their
        mean losses.
        """
        accelerator, schedule = self.accelerator, self.schedule
        means: dict[str, float] = {}
        for part in range(schedule.gradient_accumulation_steps):
            host_batch, seed = next(batches)
            torch.manual_seed(seed)  # dropout
            batch = {name: self._placed(value) for name, value in host_batch.items()}
            synced = part + 1 == schedule.gradient_accumulation_steps
            with nullcontext() if synced else accelerator.no_sync(loss_module):
                with torch.autocast(
                    accelerator.device.type, torch.bfloat16, enabled=schedule.precision == "bf16"
                ):
                    losses = loss_module(batch)
                values = {name: value.item() for name, value in losses.items()}
                if not all(map(math.isfinite, values.values())):
                    raise DataError(_not_finite(step, values, batch.get("keys", ())))
                accelerator.backward(
                    torch.stack(list(losses.values())).sum() / schedule.gradient_accumulation_steps
                )
            for name, value in values.items():
                means[name] = means.get(name, 0.0) + value / schedule.gradient_accumulation_steps
        return means

    def _batches(
        self, batch_of: Callable[[int, np.random.Generator], Batch], first: int
    ) -> Iterator[tuple[Batch, int]]:
        """Yield batches of all steps from `first` on, each with a seed for PyTorch's generator; one batch is
        made ahead.
        """
        schedule, process = self.schedule, self.accelerator.process_index

        def make(step: int, part: int) -> tuple[Batch, int]:
            rng = np.random.default_rng((schedule.seed, step, part, process))
            seed = int(rng.integers(2**31))
            return batch_of(step, rng), seed

        with ThreadPoolExecutor(1) as ahead:
            pending: Future[tuple[Batch, int]] | None = None
            for number in product(range(first, schedule.steps), range(schedule.gradient_accumulation_steps)):
                finished, pending = pending, ahead.submit(make, *number)
                if finished is not None:
                    yield finished.result()
            if pending is not None:
                yield pending.result()

    def _placed(self, value: Any) -> Any:
        return value.to(self.accelerator.device) if isinstance(value, Tensor) else value

    def _means(self, values: dict[str, float]) -> dict[str, float]:
        """Return the means over all processes."""
        numbers = torch.tensor(list(values.values()), device=self.accelerator.device)
        means = self.accelerator.reduce(numbers, "mean").tolist()
        return {name: round(value, 5) for name, value in zip(values, means, strict=True)}

    def _log_step(self, log: Any, step: int, means: Mapping[str, float], pace: float, rate: float) -> None:
        left = pace * (self.schedule.steps - step)
        record = {
            "step": step,
            **means,
            "learning_rate": rate,
            "seconds_per_step": round(pace, 3),
            "seconds_left": round(left),
        }
        log.write(json.dumps(record) + "\n")
        log.flush()
        text = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        time_left = f"{duration(left)} left"
        if self.later_stages:
            time_left += f" in this stage, then {self.later_stages}"
        self.report(f"step {step:,} of {self.schedule.steps:,}  {text}  {pace:.2f} s/step  {time_left}")

    def _log_figures(self, log: Any, step: int, figures: Mapping[str, float] | None) -> None:
        if figures:
            log.write(
                json.dumps({"step": step} | {name: round(value, 5) for name, value in figures.items()}) + "\n"
            )
            log.flush()
            self.report(
                f"step {step:,}  " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
            )

    def _save(self, step: int, loss_module: LossModule, optimizers: list[torch.optim.Optimizer]) -> None:
        state = {
            "step": step,
            "seed": self.schedule.seed,
            "tensors": _saved_tensors(loss_module),
            "shapes": shapes_of(optimizers),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        with replacing(self.folder / STATE) as partial:
            torch.save(state, partial)

    def _resume(self, loss_module: LossModule, optimizers: list[torch.optim.Optimizer]) -> int:
        path = self.folder / STATE
        if not path.exists():
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["seed"] != self.schedule.seed:
            raise DataError(
                f"{path} was trained with seed {state['seed']}; keep that seed, or use another folder"
            )
        tensors = _saved_tensors(loss_module)
        # optimizers identify parameters only by their order
        if state["shapes"] != shapes_of(optimizers) or set(state["tensors"]) != set(tensors):
            raise DataError(f"{path} is the state of another model or recipe; use another folder")
        for name, tensor in tensors.items():
            tensor.copy_(state["tensors"][name])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.report(f"resuming at step {state['step']:,}")
        return int(state["step"])


def _saved_tensors(loss_module: LossModule) -> dict[str, Tensor]:
    """Return parameters and buffers by name, without the frozen parameters of `frozen_modules`."""
    frozen = {
        id(p) for module in loss_module.frozen_modules() for p in module.parameters() if not p.requires_grad
    }
    return {
        name: p.detach() for name, p in loss_module.state_dict(keep_vars=True).items() if id(p) not in frozen
    }


def _not_finite(step: int, losses: Mapping[str, float], keys: Any) -> str:
    values = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    samples = ", ".join(map(str, keys[:NAMED_KEYS])) or "its batch"
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    advice = "lower schedule.learning_rate, or check these samples"
    return f"step {step}: the loss is not finite ({values}) on {samples}{more}; {advice}"
