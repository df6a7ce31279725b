import dataclasses
import json
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

import seed_edge
from seed_edge.errors import DataError
from seed_edge.train.recipe import RENAMED_KEYS, Schedule, load_recipe
from seed_edge.train.trainer import LossModule, Trainer, duration, learning_rate_at, optimizers_for

SCHEDULE = Schedule(
    steps=30,
    batch_size=16,
    learning_rate=1e-1,
    warmup_steps=2,
    log_every=5,
    save_every=10,
    precision="fp32",
    weight_decay=0.01,
)


def silent(text):
    pass


class Regression(LossModule):
    """A small problem with dropout, a buffer, and a part that stays frozen."""

    def __init__(self, seed=0, width=8):
        super().__init__()
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(width, 1)
        )
        self.norm = torch.nn.BatchNorm1d(4, affine=False)
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)

    def forward(self, batch):
        x = batch["x"]
        return {
            "squared": (self.model(self.norm(x)) - x.sum(1, keepdim=True)).square().mean()
            * batch.get("factor", 1)
        }

    def frozen_modules(self):
        return [self.frozen]

    def weights(self):
        return torch.cat([p.flatten() for p in [*self.model.parameters(), *self.norm.buffers()]])


def batch_of(step, rng):
    return {
        "keys": [f"k{i}" for i in range(16)],
        "x": torch.from_numpy(rng.standard_normal((16, 4)).astype(np.float32)),
    }


def test_the_rate_warms_up_and_falls():
    schedule = Schedule(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate_at(step, schedule) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and max(rates) <= 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(0.05, abs=0.01)


def test_what_muon_does_not_train_may_have_a_rate_of_its_own(tmp_path):
    schedule, moved = dataclasses.replace(SCHEDULE, steps=1, warmup_steps=0, weight_decay=0.0), []
    for number, factor in enumerate((1.0, 4.0)):
        model = Regression()
        before = [p.detach().clone() for p in model.model.parameters()]
        Trainer(tmp_path / str(number), dataclasses.replace(schedule, embedding_lr_scale=factor), silent).run(
            model, batch_of
        )
        moved.append([(p - q).norm().item() for p, q in zip(model.model.parameters(), before, strict=True)])
    matrices, biases = [0, 2], [1, 3]
    assert all(moved[1][i] == pytest.approx(moved[0][i], rel=1e-4) for i in matrices)
    assert all(moved[1][i] == pytest.approx(4 * moved[0][i], rel=1e-3) for i in biases)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, optimizer):
    schedule = dataclasses.replace(SCHEDULE, optimizer=optimizer, gradient_accumulation_steps=2)
    whole = Regression()
    frozen = whole.frozen.weight.clone()
    Trainer(tmp_path / "whole", schedule, silent).run(whole, batch_of)

    def interrupted(step, rng):
        if step == 17:
            raise KeyboardInterrupt
        return batch_of(step, rng)

    with pytest.raises(KeyboardInterrupt):
        Trainer(tmp_path / "broken", schedule, silent).run(Regression(), interrupted)
    resumed, said = Regression(seed=5), []
    Trainer(tmp_path / "broken", schedule, said.append).run(resumed, batch_of)
    assert said[0] == "resuming at step 10"
    assert torch.equal(resumed.weights(), whole.weights()) and torch.equal(whole.frozen.weight, frozen)
    kept = torch.load(tmp_path / "whole" / "state.pt", weights_only=True)["tensors"]
    assert not any(name.startswith("frozen") for name in kept) and "norm.running_mean" in kept
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 30 and lines[-1]["squared"] < lines[0]["squared"]


def test_two_batches_make_one_step(tmp_path):
    """Accumulated gradients are those of the joined batch."""
    from dataclasses import replace

    class Plain(Regression):
        def forward(self, batch):
            return {"squared": (self.model[3](torch.tanh(self.model[0](batch["x"]))) - 1).square().mean()}

    parts, schedule = [], replace(SCHEDULE, steps=1, gradient_accumulation_steps=2, optimizer="adamw")

    def remembered(step, rng):
        parts.append(batch_of(step, rng))
        return parts[-1]

    twice, once = Plain(), Plain()
    Trainer(tmp_path / "a", schedule, silent).run(twice, remembered)
    joined = {"x": torch.cat([part["x"] for part in parts])}
    Trainer(tmp_path / "b", replace(schedule, gradient_accumulation_steps=1), silent).run(
        once, lambda step, rng: joined
    )
    assert torch.allclose(twice.weights(), once.weights(), atol=1e-6) and not torch.equal(
        twice.weights(), Plain().weights()
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_samples(tmp_path):
    spoilt = lambda step, rng: batch_of(step, rng) | {"factor": float("nan") if step == 3 else 1}  # noqa: E731
    with pytest.raises(
        DataError, match=r"step 3: the loss is not finite \(squared nan\) on k0, k1, .* and 8 more"
    ):
        Trainer(tmp_path, SCHEDULE, silent).run(Regression(), spoilt)


def test_another_seed_or_another_model_does_not_continue_a_run(tmp_path):
    from dataclasses import replace

    Trainer(tmp_path, SCHEDULE, silent).run(Regression(), batch_of)
    with pytest.raises(DataError, match="trained with seed 0"):
        Trainer(tmp_path, replace(SCHEDULE, seed=1, steps=40), silent).run(Regression(), batch_of)
    with pytest.raises(DataError, match="state of another model"):
        Trainer(tmp_path, replace(SCHEDULE, steps=40), silent).run(Regression(width=9), batch_of)


def test_what_is_found_after_a_checkpoint_is_logged(tmp_path):
    Trainer(tmp_path, SCHEDULE, silent).run(Regression(), batch_of, lambda step: {"unseen": step / 10})
    found = [
        line["unseen"]
        for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
        if "unseen" in line
    ]
    assert found == [1.0, 2.0, 3.0]


def test_matrices_go_to_muon_and_tables_heads_and_norms_never_decay():
    class Parts(LossModule):
        def __init__(self):
            super().__init__()
            parts = {
                "table": torch.nn.Embedding(4, 4),
                "linear": torch.nn.Linear(4, 4),
                "norm": torch.nn.LayerNorm(4),
            }
            self.parts = torch.nn.ModuleDict(
                parts | {"conv": torch.nn.Conv2d(2, 2, 3), "head": torch.nn.Linear(4, 9)}
            )

        def adamw_modules(self):
            return [self.parts["head"]]

    objective = Parts()
    names = {id(parameter): name for name, parameter in objective.parts.named_parameters()}
    muon, adamw = optimizers_for(
        objective, Schedule(steps=1, batch_size=1, learning_rate=1.0, weight_decay=0.1)
    )
    assert [names[id(p)] for g in muon.param_groups for p in g["params"]] == ["linear.weight"]
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in adamw.param_groups)
    assert decayed == {"conv.weight"}
    assert kept == {
        "table.weight",
        "linear.bias",
        "norm.weight",
        "norm.bias",
        "conv.bias",
        "head.weight",
        "head.bias",
    }
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.1, 0.0]
    (alone,) = optimizers_for(
        objective, Schedule(steps=1, batch_size=1, learning_rate=1.0, weight_decay=0.1, optimizer="adamw")
    )
    assert {names[id(p)] for p in alone.param_groups[0]["params"]} == {"linear.weight", "conv.weight"}


RECIPE = """
kind = "tune-llama"
template = "plain"
tasks = { pair = 1 }
[schedule]
steps = 3
batch_size = 2
learning_rate = 1e-4
"""


def test_a_recipe_is_read_and_changed(tmp_path):
    from seed_edge.train.language.recipes import TuneRecipe

    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    kinds = {"tune-llama": TuneRecipe}
    plain = load_recipe(kinds, str(path))
    assert plain.schedule.steps == 3 and plain.tasks == {"pair": 1.0} and plain.lora is None
    changed = load_recipe(
        kinds,
        str(path),
        ["schedule.steps=7", "lora.rank=4", "template=vicuna", "lora.modules_to_save=['norm']"],
    )
    assert (changed.schedule.steps, changed.lora.rank, changed.template, changed.lora.modules_to_save) == (
        7,
        4,
        "vicuna",
        ("norm",),
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("schedule.stepz=7", "unknown key stepz; known here: steps"),
        ("schedule.rate=1e-3", "key rate was renamed; write learning_rate"),
        ("half=true", "key half was renamed; write bf16_frozen"),
        ("schedule.half=true", "unknown key half; known here: steps"),
        ("schedule.steps=many", "steps is 'many'; it must be int"),
        ("schedule.steps=0", "at least 1"),
        ("schedule.optimizer=sgd", "one of muon, adamw"),
        ("schedule.betas=[0.9]", "has 1 values; it takes 2"),
        ("kind=cake", "kind is 'cake'; this command trains 'tune-llama'"),
        ("steps", "KEY=VALUE"),
        ("template.x=1", "template is a value"),
    ],
)
def test_a_wrong_recipe_says_where(tmp_path, change, says):
    from seed_edge.train.language.recipes import TuneRecipe

    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    with pytest.raises(DataError, match=says):
        load_recipe({"tune-llama": TuneRecipe}, str(path), [change])


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(DataError, match=r"one of: .*mini-llm.*seed-llama-sft"):
        load_recipe({}, "nothing")


def test_every_renamed_key_leads_to_a_key_of_a_recipe():
    from seed_edge.train.language.recipes import NewLlamaRecipe, TuneRecipe
    from seed_edge.train.pixel.recipes import PixelTokenizerRecipe
    from seed_edge.train.seed2.stages import CodesRecipe, ContrastiveRecipe

    keys, kinds = set(), [NewLlamaRecipe, TuneRecipe, PixelTokenizerRecipe, ContrastiveRecipe, CodesRecipe]
    while kinds:
        for name, hint in get_type_hints(kinds.pop()).items():
            keys.add(name)
            kinds += [part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)]
    assert set(RENAMED_KEYS.values()) <= keys


@pytest.mark.parametrize(
    "path", sorted((Path(seed_edge.__file__).parent / "recipes").glob("*.toml")), ids=lambda p: p.stem
)
def test_every_recipe_of_the_package_can_be_read(path):
    from seed_edge.train.language.recipes import NewLlamaRecipe, TuneRecipe
    from seed_edge.train.pixel.recipes import PixelTokenizerRecipe
    from seed_edge.train.seed2.stages import CodesRecipe, ContrastiveRecipe

    kinds = {
        "new-llama": NewLlamaRecipe,
        "tune-llama": TuneRecipe,
        "pixel-tokenizer": PixelTokenizerRecipe,
        "seed2-contrastive": ContrastiveRecipe,
        "seed2-codes": CodesRecipe,
    }
    assert load_recipe(kinds, path.stem) == load_recipe(kinds, str(path))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 00 s"), (450, "7 min 30 s"), (7500, "2 h 05 min"), (90_000, "25 h 00 min")],
)
def test_a_time_is_written_in_two_units_at_most(seconds, text):
    assert duration(seconds) == text


def test_the_log_holds_the_time_left(tmp_path):
    lines = []
    Trainer(tmp_path, SCHEDULE, lines.append).run(Regression(), batch_of)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records[-1]["seconds_left"] == 0 and all(record["seconds_left"] >= 0 for record in records)
    assert lines[0].startswith("step 5 of 30") and " s/step  " in lines[0] and lines[-1].endswith("0 s left")


def test_a_stage_names_the_stages_that_follow_instead_of_a_total_that_it_cannot_measure(tmp_path):
    lines = []
    Trainer(tmp_path, SCHEDULE, lines.append, "decoder (20 steps)").run(Regression(), batch_of)
    assert lines[-1].endswith("0 s left in this stage, then decoder (20 steps)")
