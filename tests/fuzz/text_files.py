"""Mutated settings files, codes, latents, records and conversations: each is read, or refused in one line.

Each begins with a line that tells its kind.
"""

from __future__ import annotations

import functools
import io
import json
import random
import time
from pathlib import Path

import click
import numpy as np
from click.testing import CliRunner

from seed_edge.cli import cli
from seed_edge.commands.codes_input import parse_codes, read_codes, read_latents, read_prompts
from seed_edge.commands.config import read_defaults
from seed_edge.data.samples import read_samples
from seed_edge.errors import SeedEdgeError
from seed_edge.models.llama_files import read_config
from seed_edge.runtime.conversation import saved_turns

SETTINGS = b"""# defaults
bundle = "mini"
seed = 3
memory-limit = "6G"
quiet = true
[draw]
size = 512
temperature = 0.7
guidance = 2.5
steps = 20
show = false
[train.llm]
codes = ["a", "b"]
set = ["schedule.steps=100"]
"""
CONFIG = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 310,
    "max_position_embeddings": 96, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "model_type": "llama", "bos_token_id": 1,
}  # fmt: skip
TALK = {
    "format": 1,
    "turns": [{"text": "what is this", "images": [[0, 1, 2, 3]], "answer": ["a fox", [3, 2, 1, 0]]}],
}
SAMPLES = [
    {"image": "a.png", "captions": ["a fox", "a red fox"], "label": "fox", "tags": ["animal"]},
    {
        "id": 7,
        "image": "b.png",
        "conversations": [{"from": "human", "value": "<image> what?"}, {"from": "gpt", "value": "a fox"}],
    },
    {"image": ["a.png", "b.png"], "question": "which?", "answers": ["a", "b"]},
]
COCO = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a fox"}]}
WORDS = [
    b"9" * 5000, b"-1", b"--5", b"nan", b"inf", b"1e400", b"1e-400", b"0", b"9223372036854775808", b"true", b"null", b'""', b"[[[[", b"]]", b"{}", b"{", b"}",
    b"[" * 3000, b'{"a":' * 3000, b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1b[31m", b'"\\u0000"', b'"\\ud800"', b"\\", b"'''", b"2020-01-01", b"\r\n", b".",
    b"=", b",", "\u202e\u0663".encode(),
]  # fmt: skip
SECONDS = 5.0


@functools.cache
def seeds() -> list[bytes]:
    """Valid inputs, each behind a line with its kind."""
    return [f"{kind}\n".encode() + data for kind, data in _contents()]


def _contents() -> list[tuple[str, bytes]]:
    array, fortran = io.BytesIO(), io.BytesIO()
    values = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 4, 8, 8)
    np.save(array, values)
    np.save(fortran, np.asfortranarray(values.astype(np.float16)))
    return [
        ("settings", SETTINGS),
        ("codes", b"0 1 2 3\n"),
        ("codes", b'{"image": "a.png", "codes": [0, 1, 2, 3]}'),
        ("latents", array.getvalue()),
        ("latents", fortran.getvalue()),
        ("prompts", "a fox\na house\n여우".encode()),
        ("config", json.dumps(CONFIG).encode()),
        ("talk", json.dumps(TALK).encode()),
        ("samples.jsonl", b"\n".join(json.dumps(each).encode() for each in SAMPLES)),
        ("samples.json", json.dumps(COCO).encode()),
        ("samples.json", json.dumps(SAMPLES[1:2]).encode()),
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The data with one to four changes: bytes flipped, cut, doubled, and values put in place of others."""
    kind, _, content = data.partition(b"\n")
    return kind + b"\n" + _changed(content, rng)


def _changed(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        kind = rng.choice(("flip", "cut", "double", "word", "value", "value", "value"))
        if kind == "flip" and at < len(changed):
            changed[at] = rng.randrange(256)
        elif kind == "cut":
            del changed[at : at + rng.randint(1, 40)]
        elif kind == "double":
            changed[at:at] = changed[at : at + rng.randint(1, 200)]
        elif kind == "word":
            changed[at:at] = rng.choice(WORDS)
        else:
            _replace_value(changed, rng)
    return bytes(changed)


def _replace_value(data: bytearray, rng: random.Random) -> None:
    """Put another value where a number, text or list stands."""
    starts = [place for place, byte in enumerate(data) if byte in b'0123456789"[{t']
    if starts:
        at = rng.choice(starts)
        end = next((place for place in range(at + 1, len(data)) if data[place] in b",]}\n "), len(data))
        data[at:end] = rng.choice(WORDS)


def check(data: bytes, folder: Path) -> bool:
    """Read an input as the commands do, and run a command with it where it is a settings file; whether it was taken.

    Raises:
        AssertionError: the message is not one line, or reading took too long. Any other exception is a fault
            as well.
    """
    started = time.perf_counter()
    name, _, content = data.partition(b"\n")
    kind = name.decode()
    try:
        _read(kind, content, folder)
        taken = True
    except (SeedEdgeError, click.ClickException) as error:
        text = str(error)
        assert text and len(text.splitlines()) == 1, ascii(text[:500])
        taken = False
    assert time.perf_counter() - started < SECONDS, f"{kind}: {len(content)} bytes took too long"
    if kind == "settings":
        run_settings(content, folder)
    return taken


def _read(kind: str, data: bytes, folder: Path) -> None:
    path = folder / {"settings": "s.toml", "config": "config.json", "latents": "a.npy"}.get(kind, kind)
    path.write_bytes(data)
    if kind == "settings":
        read_defaults(path, cli)
    elif kind == "codes":
        parse_codes(read_codes(str(path)), str(path))
    elif kind == "latents":
        read_latents(path)
    elif kind == "prompts":
        list(read_prompts(str(path)))
    elif kind == "config":
        read_config(folder)
    elif kind == "talk":
        saved_turns(path)
    else:
        list(read_samples([path]))


def run_settings(data: bytes, folder: Path) -> None:
    """Run a command with a settings file: exit code 0, 1 or 2, at most one line of error.

    Raises:
        AssertionError: it ended otherwise.
    """
    (folder / "s.toml").write_bytes(data)
    result = CliRunner().invoke(cli, ["--config", str(folder / "s.toml"), "bundles", "path"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    lines = result.stderr.splitlines()
    assert result.exit_code in (0, 1, 2) and len(lines) <= 1 and all(line.isprintable() for line in lines), (
        result.stderr
    )
