"""Recipes of language models: a new LLaMA, and a checkpoint that is trained further."""

from __future__ import annotations

from dataclasses import dataclass, field

from seed_edge.errors import DataError
from seed_edge.models.llama_files import MAX_CONTEXT, MAX_HEADS, MAX_IDS, MAX_LAYERS, MAX_WIDTH
from seed_edge.train.language.scst import RewardRecipe
from seed_edge.train.recipe import Schedule

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODULES_TO_SAVE = ("embed_tokens", "lm_head", "input_layernorm", "post_attention_layernorm", "norm")


@dataclass(frozen=True)
class LlamaRecipe:
    """Size of a new LLaMA."""

    text_vocab_size: int = 4096
    """Pieces of the text tokenizer that is trained with it."""
    hidden_size: int = 256
    num_layers: int = 8
    num_heads: int = 8
    intermediate_size: int = 704
    max_length: int = 128
    """Context length, in ids."""

    def __post_init__(self) -> None:
        for name, maximum in (
            ("text_vocab_size", MAX_IDS),
            ("hidden_size", MAX_WIDTH),
            ("num_layers", MAX_LAYERS),
            ("num_heads", MAX_HEADS),
            ("intermediate_size", 8 * MAX_WIDTH),
            ("max_length", MAX_CONTEXT),
        ):
            if not 1 <= getattr(self, name) <= maximum:
                raise DataError(f"model.{name} is {getattr(self, name)}; it must lie in 1 to {maximum:,}")
        if self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 2:
            raise DataError(
                f"model.num_heads is {self.num_heads}; hidden_size ({self.hidden_size}) must be a "
                "multiple of twice that"
            )


@dataclass(frozen=True)
class NewLlamaRecipe:
    """A small LLaMA from random weights, trained to caption and to draw."""

    schedule: Schedule
    model: LlamaRecipe = field(default_factory=LlamaRecipe)
    caption_shares: dict[str, float] = field(
        default_factory=lambda: {"drawings": 0.36, "composites": 0.06, "sentences": 0.38, "labelled": 0.2}
    )
    """Weights of the pools of samples (`data.subsets.POOLS`) for captioning."""
    draw_shares: dict[str, float] = field(
        default_factory=lambda: {
            "canonical": 0.42,
            "coloured": 0.13,
            "styled": 0.08,
            "composites": 0.28,
            "sentences": 0.06,
            "labelled": 0.03,
        }
    )
    """Weights of the pools of samples for drawing."""
    draw_share: float = 0.5
    """Share of drawing examples in [0, 1]; the others are captioning examples."""
    uncond_prob: float = 0.1
    """Share of drawing examples without a prompt in [0, 1]: classifier-free guidance needs an unconditional
    model.
    """
    code_noise: float = 0.1
    """Share of the input codes of captioning examples that are replaced with random codes, in [0, 1]."""
    text_weight: float = 1.0
    """Weight of the loss of a text id relative to that of a code."""
    blocked_terms: tuple[str, ...] = ()
    """Words and phrases; texts that contain one are not trained on."""


@dataclass(frozen=True)
class LoraRecipe:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), and the modules that are trained in full beside
    them.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] = PROJECTIONS
    modules_to_save: tuple[str, ...] = MODULES_TO_SAVE


@dataclass(frozen=True)
class TuneRecipe:
    """A checkpoint that is trained further, with LoRA or in full."""

    schedule: Schedule
    tasks: dict[str, float]
    """Weight of each task, by its name in `examples.TASKS`."""
    template: str
    """Prompt template, by its name in `prompts.TEMPLATES`."""
    lora: LoraRecipe | None = None
    """None: all parameters are trained."""
    freeze_code_embeddings: bool = False
    """Do not train the rows of codes in the embedding table (`code_embeddings.freeze_rows`)."""
    frozen_modules: tuple[str, ...] = ()
    """Modules that are not trained, by the last part of their name; not with LoRA."""
    max_length: int = 512
    """Maximum length of an example, in ids; longer ones are cut."""
    end_with_full_stop: bool = False
    """Add a full stop to answers that end without one."""
    uncond_prob: float = 0.0
    """As in `NewLlamaRecipe`; so are the next three."""
    code_noise: float = 0.0
    text_weight: float = 1.0
    blocked_terms: tuple[str, ...] = ()
    dialogues: bool = False
    """Add dialogues made from labels and captions (`data.dialogues`) to the task `converse`."""
    pool_shares: dict[str, dict[str, float]] = field(default_factory=dict)
    """For a task, weights of the pools of samples (`data.subsets.POOLS`) in place of `folder_weights`. With
    `dialogues`, those of `converse` select the samples that dialogues are about.
    """
    folder_weights: dict[str, float] = field(default_factory=dict)
    """Weight of each folder of codes, by its name; the default is the number of its samples."""
    replay_count: int = 0
    """Images of everyday things that the model draws before training and learns again during it
    (`replay`).
    """
    reward: RewardRecipe | None = None
    """Train captions with a CIDEr reward as well (`scst`)."""
    init_weight_share: float = 0.0
    """Share of the initial weights in the saved ones, in [0, 1]; preserves earlier abilities (Wortsman et al.
    2022, arXiv:2109.01903). Not with LoRA.
    """
    added_layers: int = 0
    """Layers inserted between those of the checkpoint (`layers.add_layers`)."""
    bf16_frozen: bool = False
    """Store frozen weights in bf16; with LoRA only."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, which saves memory."""
