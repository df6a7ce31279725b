"""What all training shares: devices, schedule, progress line, log, atomic checkpoints, resume.

Runs on `accelerate`: one CPU, one GPU, or many of either under its launcher (`accelerate launch -m seed_edge train ...`).
What is trained is an `LossModule`, a module whose forward gives losses by name; batches are made beside it.
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
MUON_RATE = 3.0
"""Learning rate of matrices, in multiples of everything else's."""
NAMED_KEYS = 8
"""Samples of a batch that an error names."""

Report = Callable[[str], None]
"""Takes a line for people."""

Batch = dict[str, Any]
"""Tensors and other values by name; `keys` names the samples."""


class LossModule(nn.Module):
    """What is trained, with everything that is needed to tell how well."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name; their sum is minimised."""
        raise NotImplementedError

    def adamw_modules(self) -> list[nn.Module]:
        """Modules that end in a distribution over words or ids: not for Muon."""
        return []

    def frozen_modules(self) -> list[nn.Module]:
        """Modules whose frozen parameters came from a file: no state needs to hold them."""
        return []


def learning_rate_at(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then cosine from the peak down to its floor."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return schedule.learning_rate * (
        schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    )


def optimizers_for(objective: LossModule, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between layers and AdamW for everything else, or AdamW for all; one learning rate drives both.

    Muon (Jordan 2024; scaled to AdamW's step as in Liu et al. 2025, arXiv:2502.16982) needs far fewer steps.
    Convolutions decay too; norms, biases, tables, heads and learnt positions do not. Frozen parameters are left out.
    """
    of_heads = {id(parameter) for head in objective.adamw_modules() for parameter in head.parameters()}
    linear = {id(module.weight) for module in objective.modules() if isinstance(module, nn.Linear)}
    matrices: list[nn.Parameter] = []
    convolutions: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in objective.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in linear and id(parameter) not in of_heads:
            matrices.append(parameter)
        else:
            (convolutions if parameter.ndim == 4 else others).append(parameter)
    decayed = convolutions if schedule.optimizer == "muon" else [*matrices, *convolutions]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=schedule.betas, eps=schedule.eps)
    if schedule.optimizer == "adamw" or not matrices:
        return [adamw]
    muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=schedule.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]


def duration(seconds: float) -> str:
    """A time in hours and minutes, or in minutes and seconds: `2 h 05 min`, `7 min 30 s`, `9 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def shapes_of(optimizers: list[torch.optim.Optimizer]) -> list[list[list[int]]]:
    """Shapes of the parameters of each optimizer, in its order."""
    return [[list(p.shape) for group in o.param_groups for p in group["params"]] for o in optimizers]


class Trainer:
    """Runs an objective to the end of its schedule; an interrupted run goes on where it was.

    The random numbers of step n depend on the seed and on n alone, so a resumed run equals one that never stopped.
    """

    def __init__(self, folder: Path, schedule: Schedule, report: Report) -> None:
        self.folder, self.schedule, self.report = folder, schedule, report
        self.accelerator = Accelerator()
        folder.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        objective: LossModule,
        batch_of: Callable[[int, np.random.Generator], Batch],
        after: Callable[[int], Mapping[str, float] | None] | None = None,
    ) -> None:
        """Train.

        Args:
            objective: moved to the device; trained in place.
            batch_of: (step, generator) -> a batch of this process.
            after: called with the step after each checkpoint, by the first process; what it returns is logged.

        Raises:
            DataError: a loss became NaN or infinite; step and samples are named.
        """
        accelerator, schedule = self.accelerator, self.schedule
        objective.to(accelerator.device)
        optimizers = optimizers_for(objective, schedule)
        factors = [MUON_RATE, schedule.embedding_lr_scale] if len(optimizers) > 1 else [1.0]
        first = self._resume(objective, optimizers)
        wrapped = accelerator.prepare_model(objective)
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
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
                        self._tell(log, step + 1, means, (time.monotonic() - started) / (step + 1 - first), rate)
                    sums, count = {}, 0
                if (step + 1) % schedule.save_every == 0 or last:
                    if accelerator.is_main_process:
                        self._save(step + 1, objective, optimizers)
                        self._log_found(log, step + 1, after(step + 1) if after is not None else None)
                    accelerator.wait_for_everyone()

    def _gradients(self, objective: nn.Module, batches: Iterator[tuple[Batch, int]], step: int) -> dict[str, float]:
        """Mean gradient of the batches of a step, left in the parameters; their losses."""
        accelerator, schedule = self.accelerator, self.schedule
        found: dict[str, float] = {}
        for part in range(schedule.gradient_accumulation_steps):
            made, chance = next(batches)
            torch.manual_seed(chance)  # dropout
            batch = {name: self._placed(value) for name, value in made.items()}
            synced = part + 1 == schedule.gradient_accumulation_steps
            with nullcontext() if synced else accelerator.no_sync(objective):
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=schedule.precision == "bf16"):
                    losses = objective(batch)
                values = {name: value.item() for name, value in losses.items()}
                if not all(map(math.isfinite, values.values())):
                    raise DataError(_not_finite(step, values, batch.get("keys", ())))
                accelerator.backward(torch.stack(list(losses.values())).sum() / schedule.gradient_accumulation_steps)
            for name, value in values.items():
                found[name] = found.get(name, 0.0) + value / schedule.gradient_accumulation_steps
        return found

    def _batches(self, batch_of: Callable[[int, np.random.Generator], Batch], first: int) -> Iterator[tuple[Batch, int]]:
        """Batches of all steps from `first` on with a number for torch's generator; one is made ahead."""
        schedule, process = self.schedule, self.accelerator.process_index

        def make(step: int, part: int) -> tuple[Batch, int]:
            rng = np.random.default_rng((schedule.seed, step, part, process))
            chance = int(rng.integers(2**31))
            return batch_of(step, rng), chance

        with ThreadPoolExecutor(1) as ahead:
            coming: Future[tuple[Batch, int]] | None = None
            for number in product(range(first, schedule.steps), range(schedule.gradient_accumulation_steps)):
                made, coming = coming, ahead.submit(make, *number)
                if made is not None:
                    yield made.result()
            if coming is not None:
                yield coming.result()

    def _placed(self, value: Any) -> Any:
        return value.to(self.accelerator.device) if isinstance(value, Tensor) else value

    def _means(self, values: dict[str, float]) -> dict[str, float]:
        """Over all processes."""
        numbers = torch.tensor(list(values.values()), device=self.accelerator.device)
        means = self.accelerator.reduce(numbers, "mean").tolist()
        return {name: round(value, 5) for name, value in zip(values, means, strict=True)}

    def _tell(self, log: Any, step: int, means: Mapping[str, float], pace: float, rate: float) -> None:
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
        self.report(f"step {step:,} of {self.schedule.steps:,}  {text}  {pace:.2f} s/step  {duration(left)} left")

    def _log_found(self, log: Any, step: int, found: Mapping[str, float] | None) -> None:
        if found:
            log.write(json.dumps({"step": step} | {name: round(value, 5) for name, value in found.items()}) + "\n")
            log.flush()
            self.report(f"step {step:,}  " + "  ".join(f"{name} {value:.4f}" for name, value in found.items()))

    def _save(self, step: int, objective: LossModule, optimizers: list[torch.optim.Optimizer]) -> None:
        state = {
            "step": step,
            "seed": self.schedule.seed,
            "tensors": _own(objective),
            "shapes": shapes_of(optimizers),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        with replacing(self.folder / STATE) as partial:
            torch.save(state, partial)

    def _resume(self, objective: LossModule, optimizers: list[torch.optim.Optimizer]) -> int:
        path = self.folder / STATE
        if not path.exists():
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["seed"] != self.schedule.seed:
            raise DataError(f"{path} was trained with seed {state['seed']}; keep that seed, or use another folder")
        own = _own(objective)
        # optimizers know parameters by their order alone
        if state["shapes"] != shapes_of(optimizers) or set(state["tensors"]) != set(own):
            raise DataError(f"{path} is the state of another model or another recipe; start anew in another folder")
        for name, tensor in own.items():
            tensor.copy_(state["tensors"][name])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.report(f"resuming at step {state['step']:,}")
        return int(state["step"])


def _own(objective: LossModule) -> dict[str, Tensor]:
    """Parameters and buffers, but for frozen parameters that were given."""
    given = {id(p) for module in objective.frozen_modules() for p in module.parameters() if not p.requires_grad}
    return {name: p.detach() for name, p in objective.state_dict(keep_vars=True).items() if id(p) not in given}


def _not_finite(step: int, losses: Mapping[str, float], keys: Any) -> str:
    values = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    named = ", ".join(map(str, keys[:NAMED_KEYS])) or "its batch"
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    advice = "lower schedule.learning_rate, or check these samples"
    return f"step {step}: the loss is not finite ({values}) on {named}{more}; {advice}"
