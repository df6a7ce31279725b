"""Trains language models that read and write codes: a small LLaMA from nothing, or a checkpoint with LoRA or whole.

Next-token loss on the answers. Input are samples whose pictures are codes already (`codes`), output folders in Hugging Face's
layout, which is what export reads.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from seed_edge.atomic import replacing
from seed_edge.data.code_shards import Codebook, CodeSample, read_code_shards, read_codebook
from seed_edge.data.dialogues import talks
from seed_edge.data.phrasing import with_article, without
from seed_edge.data.samples import Sample
from seed_edge.data.subsets import CANONICAL_STYLE, shared_pools
from seed_edge.data.synonyms import EVERYDAY_NAMES
from seed_edge.errors import CheckpointError, DataError
from seed_edge.models.checkpoints import UNREADABLE, reason_of, refuse_inflated
from seed_edge.models.fields import Fields
from seed_edge.models.llama_files import (
    ADDED_TOKENS_FILE,
    MAX_CONTEXT,
    MAX_HEADS,
    MAX_IDS,
    MAX_LAYERS,
    MAX_WIDTH,
    PIECES_FILE,
    TEMPLATE,
    extended_vocab,
    read_added_tokens,
    read_config,
    read_pieces,
    vocab_of,
    write_added_tokens,
)
from seed_edge.output_checks import RUN_SIGNS, claim
from seed_edge.prompts import TEMPLATES
from seed_edge.train.language.examples import NOT_LEARNT, TASKS, ExampleBuilder, Mixture, collated
from seed_edge.train.language.scst import CiderReward, RewardRecipe, rewarded
from seed_edge.train.language.text_vocab import train_pieces
from seed_edge.train.recipe import Schedule
from seed_edge.train.trainer import Batch, LossModule, Report, Trainer
from seed_edge.vocab import CodeSpace, Vocab

STATE_FOLDER = "state"
"""In the output folder: what an interrupted run needs."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TRAINED_WHOLE = ("embed_tokens", "lm_head", "input_layernorm", "post_attention_layernorm", "norm")

UNSEEN_BATCHES = 4
PARTS = 3
"""Runs of the model for a batch, each over examples of like length."""
SHEET_TEMPERATURE = 0.4
REHEARSAL = "/rehearsal"
"""Beside the names of folders of codes; none of them can be this."""


@dataclass(frozen=True)
class LlamaRecipe:
    """A LLaMA to be made from nothing."""

    text_vocab_size: int = 4096
    hidden_size: int = 256
    num_layers: int = 8
    num_heads: int = 8
    intermediate_size: int = 704
    max_length: int = 128

    def __post_init__(self) -> None:
        for name, most in (
            ("text_vocab_size", MAX_IDS),
            ("hidden_size", MAX_WIDTH),
            ("num_layers", MAX_LAYERS),
            ("num_heads", MAX_HEADS),
            ("intermediate_size", 8 * MAX_WIDTH),
            ("max_length", MAX_CONTEXT),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise DataError(f"model.{name} is {getattr(self, name)}; it must lie in 1 to {most:,}")
        if self.hidden_size % self.num_heads or self.hidden_size // self.num_heads % 2:
            raise DataError(
                f"model.num_heads is {self.num_heads}; hidden_size ({self.hidden_size}) must be a multiple of twice that"
            )


@dataclass(frozen=True)
class NewLlamaRecipe:
    """A small model from nothing, captioning and drawing."""

    schedule: Schedule
    model: LlamaRecipe = field(default_factory=LlamaRecipe)
    caption_shares: dict[str, float] = field(
        default_factory=lambda: {"drawings": 0.36, "composites": 0.06, "sentences": 0.38, "labelled": 0.2}
    )
    """Of the pools of pictures (`pools`) among pictures to caption."""
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
    """The same among pictures to draw."""
    draw_share: float = 0.5
    """Share of pictures to draw, beside pictures to caption."""
    uncond_prob: float = 0.1
    """Share of pictures to draw without being told what, which is what guidance at run time starts from."""
    code_noise: float = 0.1
    """Share of the codes of a picture to caption that random ones take the place of."""
    text_weight: float = 1.0
    """Of an id of text beside one of a picture: a name has few ids, a picture many."""
    blocked_terms: tuple[str, ...] = ()
    """Words and phrases; texts that use one are left out."""


@dataclass(frozen=True)
class LoraRecipe:
    """Low-rank changes (Hu et al. 2021, arXiv:2106.09685), and what is trained whole beside them."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] = PROJECTIONS
    modules_to_save: tuple[str, ...] = TRAINED_WHOLE


@dataclass(frozen=True)
class TuneRecipe:
    """A checkpoint trained on, with LoRA or whole."""

    schedule: Schedule
    tasks: dict[str, float]
    """Weight of each of `TASKS`."""
    template: str
    """Family of prompts, one of `TEMPLATES`."""
    lora: LoraRecipe | None = None
    """Without it all parameters are trained."""
    freeze_code_embeddings: bool = False
    """The table's rows of codes stay what they are (`keep_rows`)."""
    frozen_modules: tuple[str, ...] = ()
    """Modules that are not trained where all others are, by the end of their name."""
    max_length: int = 512
    """Ids of an example; the rest is cut off."""
    end_with_full_stop: bool = False
    """Answers that end without a full stop get one."""
    uncond_prob: float = 0.0
    code_noise: float = 0.0
    text_weight: float = 1.0
    blocked_terms: tuple[str, ...] = ()
    """As in `NewLlamaRecipe`."""
    dialogues: bool = False
    """Conversations are made of what is known of the pictures (`talks`), for the task `converse`."""
    pool_shares: dict[str, dict[str, float]] = field(default_factory=dict)
    """For a task, shares of the pools of pictures (`pools`), instead of the `weights` of folders. With `talk`, those for
    `converse` are of the pictures that the conversations are about."""
    folder_weights: dict[str, float] = field(default_factory=dict)
    """Weight of each folder of codes, by its name; others weigh as many as they have samples."""
    replay_count: int = 0
    """Pictures of everyday things that the model draws before it is trained on, and learns again beside what is new."""
    reward: RewardRecipe | None = None
    """Captions of pictures with sentences are learnt from what they are worth too (`reward`)."""
    init_weight_share: float = 0.0
    """Share of the weights that it started from in those that are written, which keeps what it could do before (Wortsman
    et al. 2022, arXiv:2109.01903). Not with LoRA."""
    added_layers: int = 0
    """Layers put between those of the checkpoint (`deepen`)."""
    bf16_frozen: bool = False
    """Frozen weights are kept in bf16."""
    gradient_checkpointing: bool = False
    """Activations are computed twice and not kept, which saves memory."""


@dataclass(frozen=True)
class Sheet:
    """Draws a few prompts every so often, to see how it goes."""

    prompts: Sequence[str]
    decode: Callable[[NDArray[np.int64]], Image.Image]
    """Codes (codes_per_image,) -> picture."""


class LanguageLoss(LossModule):
    """Next-token loss, of text and of codes apart; and what captions are worth, where they are learnt from that."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, vocab: Vocab, text_weight: float = 1.0, worth: CiderReward | None = None
    ) -> None:
        super().__init__()
        self.model, self.vocab, self._text_weight, self.worth = model, vocab, text_weight, worth

    def adamw_modules(self) -> list[nn.Module]:
        return [module for name, module in self.model.named_modules() if "lm_head" in name and isinstance(module, nn.Linear)]

    def frozen_modules(self) -> list[nn.Module]:
        return [self.model]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        wanted = batch["labels"][:, 1:]
        asked = wanted != NOT_LEARNT
        llama = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        parts = list(parts_of(asked))
        hidden = torch.cat([llama.model(batch["ids"][rows, :end]).last_hidden_state[kept] for rows, end, kept in parts])
        wanted = torch.cat([wanted[rows, :end][kept] for rows, end, kept in parts])
        each = F.cross_entropy(llama.lm_head(hidden).float(), wanted, reduction="none")
        first = self.vocab.first_code_id
        drawn = (wanted >= first) & (wanted < first + self.vocab.codebook_size)
        text, codes = (each[kind].sum() / max(1, len(each)) for kind in (~drawn, drawn))
        losses = {"text": self._text_weight * text, "codes": codes}
        if self.worth is not None and "prompts" in batch:
            losses |= rewarded(llama, self.vocab, self.worth, batch)
        return losses


def parts_of(asked: Tensor, count: int = PARTS) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Rows of a batch in parts of like length, each with that length and what is asked of it: padding costs time.

    Args:
        asked: (batch, length), whether an id is predicted.
    """
    ends = (asked * torch.arange(1, asked.shape[1] + 1, device=asked.device)).amax(1)
    for rows in ends.argsort(stable=True).chunk(count):
        end = max(1, int(ends[rows].max()))
        yield rows, end, asked[rows, :end]


def new_llama(vocab: Vocab, shape: LlamaRecipe, seed: int, codebook: Codebook | None = None) -> LlamaForCausalLM:
    """A LLaMA with random weights; codes that are near in the `codebook` begin near in its table and head."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab.size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            max_position_embeddings=shape.max_length,
            rms_norm_eps=1e-6,
            bos_token_id=vocab.bos_id,
            eos_token_id=vocab.eos_id,
            tie_word_embeddings=False,
        )
    )
    model.set_attn_implementation("eager")  # on CPU, the backward pass of fused attention takes twice as long
    if codebook is not None:
        rows = code_rows_of(vocab)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight.data[rows] = code_rows(codebook, shape.hidden_size) * layer.weight.std()
        keep_rows(model, rows)
    return model


def code_rows_of(vocab: Vocab) -> slice:
    """Rows of codes in a table or a head."""
    return slice(vocab.first_code_id, vocab.first_code_id + vocab.codebook_size)


def keep_rows(model: LlamaForCausalLM, rows: slice) -> None:
    """Let the table's rows of codes stay what they are.

    What near codes have in common is what pictures in unseen styles are known by; a model that may move each row on its own
    learns its training pictures by heart instead (`docs/embedded-model.md`).
    """

    def without(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[rows] = 0
        return gradient

    model.get_input_embeddings().weight.register_hook(without)


def code_rows(codebook: Codebook, width: int) -> Tensor:
    """Rows (codebook_size, width) of mean square 1 for codes to begin with; random numbers are torch's.

    Codes that only one query has lie in directions of their own, as far as there are any, so that the mean of all codes of an
    image still holds what each of them says. Half of a row says where it is from, so that its length tells something too.
    """
    vectors = torch.from_numpy((codebook.vectors - codebook.vectors.mean(0)) / codebook.vectors.std())
    (queries, count), dim = codebook.own_rows, vectors.shape[1]
    blocks = [*vectors[: queries * count].split(count)] if count else []
    blocks.append(vectors[queries * count :])
    directions = torch.linalg.qr(torch.randn(width, width)).Q
    rows = []
    for number, block in enumerate(blocks):
        taken = torch.arange(number * dim, (number + 1) * dim) % width
        rows.append(block @ directions[taken] * (width / dim) ** 0.5 + torch.randn(width))
    return torch.cat(rows) / 2**0.5


def train_new_llama(
    codes: Sequence[Path], out: Path, recipe: NewLlamaRecipe, report: Report, sheet: Sheet | None = None
) -> None:
    """Train a language model from nothing on folders of codes; writes it into `out`.

    Interrupted, the same call goes on at the last saved step.
    """
    claim(out, "run", codes, RUN_SIGNS)
    space, folders = read_code_shards(codes)
    samples = [each for some in folders.values() for each in said_of(some, recipe.blocked_terms)]
    seed = recipe.schedule.seed
    pieces = train_pieces([each.sample for each in samples], recipe.model.text_vocab_size, out, seed)
    vocab = extended_vocab(pieces, space.codebook_size, space.codes_per_image)
    write_added_tokens(vocab, out)
    model = new_llama(vocab, recipe.model, seed, read_codebook(codes))
    writer = ExampleBuilder(
        vocab, pieces.encode, TEMPLATES["own"], uncond_prob=recipe.uncond_prob, code_noise=recipe.code_noise
    )
    shares = {"caption": recipe.caption_shares, "draw": recipe.draw_shares}

    def mixture(held_out: bool) -> Mixture:
        kept = [each for each in samples if each.sample.held_out == held_out]
        mixed = {
            task: [([kept[i] for i in pool], share) for pool, share in shared_pools([each.sample for each in kept], named)]
            for task, named in shares.items()
        }
        return Mixture(writer, {"caption": 1 - recipe.draw_share, "draw": recipe.draw_share}, mixed)

    objective = LanguageLoss(model, vocab, recipe.text_weight)
    run_language(objective, writer, mixture, recipe.schedule, recipe.model.max_length, out, report, sheet)


def said_of(samples: Sequence[CodeSample], unsaid: Sequence[str]) -> list[CodeSample]:
    """Samples without the texts that use one of the words or phrases `unsaid`; none of which nothing is left to say."""
    told = ((each, without(each.sample, unsaid)) for each in samples)
    return [dataclasses.replace(each, sample=sample) for each, sample in told if sample is not None]


def tune_llama(
    llm: Path, codes: Sequence[Path], out: Path, recipe: TuneRecipe, report: Report, sheet: Sheet | None = None
) -> None:
    """Train a checkpoint on, on folders of codes; writes an adapter, or the whole model, into `out`.

    A checkpoint that knows no codes yet is given them: rows are added to its table and its head.

    Raises:
        CheckpointError: the checkpoint is incomplete, or its codes are others.
    """
    claim(out, "run", (llm, *codes), RUN_SIGNS)
    space, folders = read_code_shards(codes)
    if recipe.template not in TEMPLATES:
        raise DataError(f"template is {recipe.template!r}; it must be one of {', '.join(TEMPLATES)}")
    if recipe.lora is not None and recipe.init_weight_share:
        raise DataError("init_weight_share mixes whole weights; with lora leave it out")
    torch.manual_seed(recipe.schedule.seed)
    model, vocab = open_llama(llm, space, recipe.bf16_frozen and recipe.lora is not None)
    pieces = read_pieces(llm)
    deepen(model, recipe.added_layers)
    if recipe.freeze_code_embeddings:
        keep_rows(model, code_rows_of(vocab))
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    trained: nn.Module = model
    if recipe.lora is not None:
        trained = get_peft_model(model, _peft_config(recipe.lora))
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    else:
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in recipe.frozen_modules:
                module.requires_grad_(False)
    model.config.max_position_embeddings = max(model.config.max_position_embeddings, recipe.max_length)
    setattr(model.config, TEMPLATE, recipe.template)
    writer = ExampleBuilder(
        vocab, pieces.encode, TEMPLATES[recipe.template], recipe.end_with_full_stop, recipe.uncond_prob, recipe.code_noise
    )
    folders = {name: said_of(some, recipe.blocked_terms) for name, some in folders.items()}
    if recipe.replay_count:
        report(f"rehearsal: drawing {recipe.replay_count} everyday things")
        folders[REHEARSAL] = rehearsal(model, writer, recipe.replay_count, recipe.schedule.seed)

    def mixture(held_out: bool) -> Mixture:
        kept = {name: [s for s in some if s.sample.held_out == held_out] for name, some in folders.items()}
        weighted = [(some, recipe.folder_weights.get(name, float(len(some)))) for name, some in kept.items()]
        pools = dict.fromkeys(TASKS, weighted)
        every = [each for some in kept.values() for each in some]
        about = {task: [(each.sample, each) for each in every] for task in TASKS}
        if recipe.dialogues:
            about["converse"] = talks(every, recipe.schedule.seed)
            pools["converse"] = [*pools["converse"], ([talk for _, talk in about["converse"]], 1.0)]
        for task, named in recipe.pool_shares.items():
            chosen = shared_pools([sample for sample, _ in about[task]], named)
            pools[task] = [([about[task][i][1] for i in pool], share) for pool, share in chosen]
        return Mixture(writer, recipe.tasks, pools)

    shutil.copyfile(llm / PIECES_FILE, out / PIECES_FILE)
    write_added_tokens(vocab, out)
    worth = None
    if recipe.reward is not None:
        seen = [each for some in folders.values() for each in some if not each.sample.held_out]
        worth = CiderReward(seen, writer, pieces.decode, recipe.reward)
    objective = LanguageLoss(trained, vocab, recipe.text_weight, worth)
    written = partial(mixed, model, recipe.init_weight_share, weights_of(model)) if recipe.init_weight_share else nullcontext
    run_language(objective, writer, mixture, recipe.schedule, recipe.max_length, out, report, sheet, written)


def deepen(model: LlamaForCausalLM, count: int) -> None:
    """Put `count` layers evenly between those there are, in place; what the model says stays as it is.

    Each begins as a copy of the layer before it that adds nothing yet (Wu et al. 2024, arXiv:2401.02415).
    """
    layers = list(model.model.layers)
    after = [math.ceil((number + 1) * len(layers) / count) - 1 for number in range(count)]
    grown = []
    for place, layer in enumerate(layers):
        grown.append(layer)
        for _ in range(after.count(place)):
            copied = copy.deepcopy(layer)
            for silent in (copied.self_attn.o_proj, copied.mlp.down_proj):
                nn.init.zeros_(silent.weight)
            grown.append(copied)
    for place, layer in enumerate(grown):
        layer.self_attn.layer_idx = place
    model.model.layers = nn.ModuleList(grown)
    model.config.num_hidden_layers = len(grown)


def weights_of(model: nn.Module) -> list[Tensor]:
    """Copies of what is trained."""
    return [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]


@contextmanager
def mixed(model: nn.Module, share: float, before: Sequence[Tensor]) -> Iterator[None]:
    """Within, what is trained is this share of the weights `before`, and the rest of its own; afterwards it is as it was."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    own = weights_of(model)
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.lerp_(old.to(parameter.device), share)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, kept in zip(parameters, own, strict=True):
                parameter.copy_(kept)


def _peft_config(shape: LoraRecipe) -> LoraConfig:
    return LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=shape.dropout,
        target_modules=list(shape.target_modules),
        modules_to_save=list(shape.modules_to_save),
        task_type="CAUSAL_LM",
    )


def open_llama(path: Path, space: CodeSpace, half: bool = False) -> tuple[LlamaForCausalLM, Vocab]:
    """A LLaMA in Hugging Face's layout, with rows for codes; these are added where it has none.

    Raises:
        CheckpointError: a file is missing or damaged, or its codes are others.
    """
    pieces, size = read_pieces(path), int(read_config(path)["vocab_size"])
    if (path / ADDED_TOKENS_FILE).exists():
        vocab = vocab_of(read_added_tokens(path), pieces, size, space.codes_per_image, path)
    else:
        vocab = extended_vocab(pieces, space.codebook_size, space.codes_per_image)
    if vocab.codes != space:
        raise CheckpointError(f"{path} knows {vocab.codes}, the samples have {space}; they belong to different tokenizers")
    model = load_llama(path, half)
    if size != vocab.size:
        model.resize_token_embeddings(vocab.size, mean_resizing=False)
    model.config.use_cache = False
    return model, vocab


def load_llama(path: Path, half: bool) -> LlamaForCausalLM:
    """Weights and configuration, in bf16 or fp32.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing.
    """
    read_config(path)
    for weights in path.glob("*.bin"):
        refuse_inflated(weights)
    try:
        model, told = LlamaForCausalLM.from_pretrained(
            path, dtype=torch.bfloat16 if half else torch.float32, output_loading_info=True
        )
    except UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read ({reason_of(error)})") from error
    if told["missing_keys"]:  # transformers would go on with random weights
        raise CheckpointError(
            f"{path} cannot be read (tensor {min(told['missing_keys'])} is missing); copy or download it again"
        )
    return model


def merge_lora(llm: Path, adapter: Path, out: Path) -> None:
    """Merge an adapter into its checkpoint, and write the whole model into `out`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    claim(out, "model", (llm, adapter))
    model = load_llama(llm, half=False)
    added = read_added_tokens(adapter)
    size = read_pieces(adapter).get_piece_size() + len(added)
    if size != model.config.vocab_size:  # the adapter's training gave it rows for codes
        model.resize_token_embeddings(size, mean_resizing=False)
    _check_adapter(adapter)
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except UNREADABLE as error:
        raise CheckpointError(f"{adapter} cannot be merged ({reason_of(error)})") from error
    for name in (PIECES_FILE, ADDED_TOKENS_FILE):
        shutil.copyfile(adapter / name, out / name)
    save_whole_or_not_at_all(merged, out)


def _check_adapter(folder: Path) -> None:
    """Refuse an adapter whose configuration asks for more than any has, or whose archive would unpack to more than it is.

    Raises:
        CheckpointError: so it is, or the configuration is missing.
    """
    fields = Fields.read(folder / "adapter_config.json")
    fields.bounded()
    fields.only("peft_type", "LORA")
    fields.integer("r", 1, 1 << 14)
    fields.number("lora_alpha", -1e6, 1e6)
    for weights in folder.glob("*.bin"):
        refuse_inflated(weights)


def save_whole_or_not_at_all(model: Any, out: Path) -> None:
    """What `save_pretrained` writes, each file appearing only when complete, weights last."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        model.save_pretrained(folder)
        for path in sorted(Path(folder).iterdir(), key=lambda path: path.suffix == ".safetensors"):
            os.replace(path, out / path.name)


def run_language(
    objective: LanguageLoss,
    writer: ExampleBuilder,
    mixture: Callable[[bool], Mixture],
    schedule: Schedule,
    max_length: int,
    out: Path,
    report: Report,
    sheet: Sheet | None,
    written: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Train a model on the samples that are not held out, and tell its loss on some of those that are.

    Args:
        mixture: of the samples that are held out, or of those that are not.
        max_length: ids of an example; the rest is cut off.
        written: entered while the model is written and looked at.
    """
    model, source = objective.model, mixture(False)

    def batch_from(source: Mixture, rng: np.random.Generator) -> Batch:
        keys, examples = zip(*(source.example(rng) for _ in range(schedule.batch_size)), strict=True)
        ids, labels = collated(examples, max_length)
        return {"keys": keys, "ids": ids, "labels": labels}

    try:
        kept = mixture(True)
    except DataError:  # nothing is held out
        unseen = []
    else:
        unseen = [batch_from(kept, np.random.default_rng(number)) for number in range(UNSEEN_BATCHES)]

    def after(step: int) -> dict[str, float]:
        with written(), evaluating(model):
            save_whole_or_not_at_all(model, out)
            if sheet is not None:
                write_drawings(model, writer, sheet, out / "sheets" / f"{step:06d}.png")
            losses = [objective({name: _on(model, value) for name, value in batch.items()}) for batch in unseen]
        return (
            {f"unseen_{name}": float(np.mean([each[name].item() for each in losses])) for name in losses[0]} if losses else {}
        )

    def batch_of(step: int, rng: np.random.Generator) -> Batch:
        return batch_from(source, rng) | (objective.worth.batch(rng) if objective.worth is not None else {})

    Trainer(out / STATE_FOLDER, schedule, report).run(objective, batch_of, after)


def _on(model: PreTrainedModel | PeftModel, value: Any) -> Any:
    return value.to(model.device) if isinstance(value, Tensor) else value


def write_drawings(model: PreTrainedModel | PeftModel, writer: ExampleBuilder, sheet: Sheet, path: Path) -> None:
    """What the model draws now for the prompts of `sheet`, side by side as a PNG."""
    pictures = []
    for number, text in enumerate(sheet.prompts):
        pictures.append(sheet.decode(drawn_codes(model, writer, text, number)))
    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for number, picture in enumerate(pictures):
        row.paste(picture, (number * width, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        row.save(partial, "PNG")


def drawn_codes(model: PreTrainedModel | PeftModel, writer: ExampleBuilder, text: str, seed: int) -> NDArray[np.int64]:
    """Codes (codes_per_image,) that the model draws for words, in eval mode."""
    vocab = writer.vocab
    torch.manual_seed(seed)
    ids = torch.tensor([writer.prompts.for_drawing(vocab, writer.tokenize, text)], device=model.device)
    for _ in range(vocab.codes_per_image):
        logits = model(input_ids=ids).logits[0, -1, vocab.first_code_id :][: vocab.codebook_size].float()
        chosen = torch.multinomial((logits / SHEET_TEMPERATURE).softmax(-1), 1) + vocab.first_code_id
        ids = torch.cat([ids, chosen[None]], 1)
    return vocab.ids_to_codes(ids[0, -vocab.codes_per_image :].tolist())


def rehearsal(model: PreTrainedModel, writer: ExampleBuilder, count: int, seed: int) -> list[CodeSample]:
    """What the model draws of everyday things before it is trained on, half of it as drawings, half as photos.

    Learnt again beside what is new, so that it is not forgotten; the pictures it was once trained on need not be at hand.
    """
    rng, found = np.random.default_rng(seed), []
    names = rng.choice([name.split(", ")[0] for name in EVERYDAY_NAMES.values()], count)
    with torch.random.fork_rng(), evaluating(model):
        for number, name in enumerate(map(str, names)):
            style = CANONICAL_STYLE if number % 2 == 0 else None
            text = with_article(name) if style else f"a photo of {with_article(name)}"
            sample = Sample(f"rehearsal-{number}", label=name, style=style)
            found.append(CodeSample(sample, (drawn_codes(model, writer, text, number),)))
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients."""
    was = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was)
