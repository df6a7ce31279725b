"""Recipes: TOML files with the settings of a training run, read strictly into dataclasses."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from seed_edge.display import shown
from seed_edge.errors import DataError, SeedEdgeError
from seed_edge.inputs import read_text
from seed_edge.strict import StrictReader

T = TypeVar("T")
OPTIMIZERS = ("muon", "adamw")
PRECISIONS = ("bf16", "fp32")
MAX_FILE_BYTES = 4 << 20
"""Maximum size of a recipe, and of a text file beside it, in bytes."""
MAX_INTEGER, MAX_SEED, MAX_NUMBER = 1 << 31, (1 << 63) - 1, 1e9
"""Maximum integer, seed and real number of a recipe; the minimum is 0."""


RENAMED_KEYS = {
    "rate": "learning_rate",
    "floor": "min_lr_ratio",
    "warmup": "warmup_steps",
    "batch": "batch_size",
    "accumulate": "gradient_accumulation_steps",
    "table_rate": "embedding_lr_scale",
    "clip": "max_grad_norm",
    "drawn": "draw_share",
    "wordless": "uncond_prob",
    "noise": "code_noise",
    "unsaid": "blocked_terms",
    "text_pieces": "text_vocab_size",
    "width": "hidden_size",
    "depth": "num_layers",
    "heads": "num_heads",
    "mlp": "intermediate_size",
    "context": "max_length",
    "longest": "max_length",
    "codes_kept": "freeze_code_embeddings",
    "frozen": "frozen_modules",
    "sentences": "end_with_full_stop",
    "talk": "dialogues",
    "shares": "pool_shares",
    "weights": "folder_weights",
    "rehearsed": "replay_count",
    "before": "init_weight_share",
    "half": "bf16_frozen",
    "checkpointing": "gradient_checkpointing",
    "projections": "target_modules",
    "whole": "modules_to_save",
    "pictures": "images_per_step",
    "tries": "captions_per_image",
    "rows": "codebook",
    "semantic": "rows_per_semantic_query",
    "placed": "shared_rows",
    "reading": "semantic",
    "read_shares": "semantic_pool_shares",
    "words_weight": "bag_of_words_weight",
    "reader_weight": "captioner_weight",
    "quantized_from": "quantization_ramp",
    "varied": "feature_noise_share",
    "looked_at": "perceptual_images",
    "critic_from": "critic_start",
    "smallest_crop": "min_crop_area",
    "longest_text": "max_text_length",
}
"""Key of an earlier version -> current key."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps, batch size, learning rate and optimizer of a training run; part of every recipe."""

    steps: int
    batch_size: int
    """Samples per step and process."""
    learning_rate: float
    """Peak learning rate."""
    min_lr_ratio: float = 0.05
    """Final learning rate, as a fraction of the peak, in [0, 1]."""
    warmup_steps: int = 60
    """Steps of linear warm-up."""
    gradient_accumulation_steps: int = 1
    """Batches whose mean gradient makes one optimizer step."""
    optimizer: str = "muon"
    """`muon` for matrices between layers with AdamW for the rest, or `adamw` for all."""
    embedding_lr_scale: float = 1.0
    """With `muon`: learning rate of the parameters that AdamW trains (embeddings, output heads, norms), in
    multiples of `learning_rate`.
    """
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it."""
    precision: str = "bf16"
    """`bf16`: mixed precision by PyTorch's autocast; or `fp32`."""
    save_every: int = 200
    log_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in allowed:
                raise DataError(f"schedule.{name} is {value!r}; it must be one of {', '.join(allowed)}")
        for name in ("steps", "batch_size", "gradient_accumulation_steps", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise DataError(f"schedule.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "eps", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise DataError(f"schedule.{name} is {getattr(self, name)}; it must be more than 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise DataError(f"schedule.betas is {self.betas}; each must lie in [0, 1)")
        if not 0 <= self.min_lr_ratio <= 1:
            raise DataError(f"schedule.min_lr_ratio is {self.min_lr_ratio}; it must lie in [0, 1]")


def load_recipe(kinds: Mapping[str, type[T]], name: str, changes: Sequence[str] = ()) -> T:
    """Read a recipe into the dataclass of `kinds` that its `kind` names.

    Args:
        name: of a recipe that comes with the package, or the path of a file.
        changes: `key=value` with dots between tables, such as `schedule.steps=100`; values as TOML writes
            them.

    Raises:
        DataError: there is no such recipe, a key is unknown or missing, or a value is of the wrong type.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = Path(str(resources.files("seed_edge"))) / "recipes" / f"{name}.toml"
    try:
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.toml"))) or "none there"
            raise DataError(f"recipe {name} is missing; --recipe takes a .toml file or one of: {known}")
        table = tomllib.loads(read_text(path, MAX_FILE_BYTES, DataError))
    except RecursionError:
        raise DataError(f"recipe {path} cannot be read as TOML (it nests too deeply)") from None
    except SeedEdgeError:
        raise
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise DataError(f"recipe {path} cannot be read as TOML ({error})") from error
    for change in changes:
        _apply_change(table, change)
    table = {key: _read_lines(path, key, value) for key, value in table.items()}
    kind = table.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise DataError(
            f"recipe {path}: kind is {shown(kind)}; this command trains {' and '.join(map(repr, kinds))}"
        )
    return READER.read(kinds[kind], table, f"recipe {path.name}")


def _read_lines(recipe: Path, key: str, value: Any) -> Any:
    """Return the lines of the file NAME beside the recipe if `value` is `@NAME`; otherwise return `value`."""
    if not (isinstance(value, str) and value.startswith("@")):
        return value
    try:
        path = recipe.with_name(value[1:])
        return read_text(path, MAX_FILE_BYTES, DataError).splitlines()
    except (DataError, OSError, ValueError) as error:
        raise DataError(f"recipe {recipe}: {key}: {value[1:]} cannot be read ({error})") from error


def _apply_change(table: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise DataError(f"--set {change}: write KEY=VALUE, for example --set schedule.steps=100")
    try:
        parsed = tomllib.loads(f"value = {text}")
        value = parsed["value"] if len(parsed) == 1 else text
    except (ValueError, RecursionError):
        value = text
    *tables, last = key.strip().split(".")
    for part in tables:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise DataError(f"--set {change}: {part} is a value, not a table")
    table[last] = value


def _check_number(where: str, number: int | float) -> None:
    """Check that a number lies in the range of a recipe.

    Raises:
        DataError: the number is negative, not finite, or too large.
    """
    limit = MAX_NUMBER if isinstance(number, float) else MAX_SEED if where.endswith(": seed") else MAX_INTEGER
    if not math.isfinite(number) or not 0 <= number <= limit:
        raise DataError(f"{where} is {shown(number)}; it must lie in 0 to {limit:g}")


READER = StrictReader(DataError, renamed=RENAMED_KEYS, check_number=_check_number)
