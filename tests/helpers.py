"""What several test files need."""

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw

from seed_edge.cli import cli
from seed_edge.data.webdataset import ShardWriter


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


DIM = 1024
"""Width of the official image embeddings."""
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
"""Of the official diffusion."""
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")


def shapes(path: Path) -> None:
    """A tar of coloured shapes with labels, and of plain photos with sentences."""
    with ShardWriter(path) as shard:
        for i, colour in enumerate(COLOURS * 3):
            image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
            draw = ImageDraw.Draw(image)
            shape = ("disc", "square", "bar")[i // len(COLOURS)]
            box = {"disc": (8, 8, 56, 56), "square": (12, 12, 52, 52), "bar": (4, 24, 60, 40)}[shape]
            (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=colour)
            record = {"label": shape, "style": "flat", "colour": colour, "recoloured": True}
            write(shard, f"{colour}-{shape}", image, record)
            write(
                shard,
                f"photo-{i}",
                image.convert("RGB"),
                {"captions": [f"A {shape} lies on the {colour} table in the room ."]},
            )


def write(shard: ShardWriter, key: str, image: Image.Image, record: dict[str, Any]) -> None:
    """A picture with its record."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP")
    shard.write(key, {"webp": buffer.getvalue(), "json": json.dumps(record).encode()})
