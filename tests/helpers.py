"""What several test files need."""

from pathlib import Path

import sentencepiece
from click.testing import CliRunner, Result

from seed_edge.cli import cli


def call(*arguments: object, fails: bool = False) -> Result:
    """Run a command in this process; it has to succeed, or has to fail."""
    result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert (result.exit_code != 0) == fails, result.output
    return result


def write_pieces(path: Path, words: str, count: int) -> None:
    """A small LLaMA-like tokenizer.model, with byte fallback."""
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([words]), model_writer=file, model_type="bpe", vocab_size=count, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        )  # fmt: skip
