"""Low-rank adapters (LoRA): their configuration, and merging them into the checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from peft import LoraConfig, PeftModel

from seed_edge.errors import CheckpointError
from seed_edge.models.checkpoints import UNREADABLE, check_not_inflated, reason_of
from seed_edge.models.fields import Fields
from seed_edge.models.llama_files import ADDED_TOKENS_FILE, PIECES_FILE, read_added_tokens, read_pieces
from seed_edge.output_checks import prepare_output_folder
from seed_edge.train.language.checkpoints import load_llama, save_checkpoint
from seed_edge.train.language.recipes import LoraRecipe


def lora_config(recipe: LoraRecipe) -> LoraConfig:
    """Return the configuration for `peft`."""
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.target_modules),
        modules_to_save=list(recipe.modules_to_save),
        task_type="CAUSAL_LM",
    )


def merge_lora(llm: Path, adapter: Path, out: Path) -> None:
    """Merge an adapter into its checkpoint and write the merged model into `out`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    prepare_output_folder(out, "model", (llm, adapter))
    model = load_llama(llm, bf16=False)
    added = read_added_tokens(adapter)
    size = read_pieces(adapter).get_piece_size() + len(added)
    if size != model.config.vocab_size:  # training the adapter added rows for codes
        model.resize_token_embeddings(size, mean_resizing=False)
    _check_adapter(adapter)
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except UNREADABLE as error:
        raise CheckpointError(f"{adapter} cannot be merged ({reason_of(error)})") from error
    for name in (PIECES_FILE, ADDED_TOKENS_FILE):
        shutil.copyfile(adapter / name, out / name)
    save_checkpoint(merged, out)


def _check_adapter(folder: Path) -> None:
    """Check the configuration of an adapter, and that its archives are not compressed.

    Raises:
        CheckpointError: the configuration is missing or out of range, or an archive would unpack to more than
            its size.
    """
    fields = Fields.read(folder / "adapter_config.json")
    fields.check_magnitudes()
    fields.check_value("peft_type", "LORA")
    fields.integer("r", 1, 1 << 14)
    fields.number("lora_alpha", -1e6, 1e6)
    for weights in folder.glob("*.bin"):
        check_not_inflated(weights)
