"""Recipes and training data of wrong types, ranges and sizes: one line that says where."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner

from seed_edge.cli import cli
from seed_edge.data.code_shards import CODEBOOK, read_code_shards, read_codebook
from seed_edge.data.samples import read_samples
from seed_edge.errors import DataError
from seed_edge.train.language.recipes import NewLlamaRecipe
from seed_edge.train.recipe import load_recipe

RECIPE = 'kind = "new-llama"\n[schedule]\nsteps = 2\nbatch_size = 2\nlearning_rate = 0.1\n'
KINDS = {"new-llama": NewLlamaRecipe}


def refused(call, *words):
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and len(text) < 1500 and all(word in text for word in words), text


CHANGES = [
    (
        "schedule.steps",
        [
            "0",
            "-1",
            "1.5",
            "true",
            "[1]",
            "{}",
            str(2**40),
            "9" * 5000,
            "'2'",
            "2020-01-01",
            "nan",
            "[" * 3000,
        ],
    ),
    ("schedule.learning_rate", ["0", "-1.0", "nan", "inf", "1e300", "true", "'x'", "[0.1]"]),
    ("schedule.betas", ["[1.0, 0.9]", "[nan, 0.9]", "[0.9]", "0.9", "[-0.1, 0.9]", "[[0.9], 0.9]"]),
    ("schedule.seed", ["-1", str(2**63), "1.0"]),
    ("schedule.min_lr_ratio", ["2.0", "nan"]),
    ("model.num_layers", ["0", "-1", "100000", str(2**31), "1.5"]),
    ("model.num_heads", ["0", "7", str(2**31)]),
    ("model.hidden_size", ["0", str(2**31)]),
    ("draw_share", ["nan", "-0.5", "[]"]),
    ("kind", ["3", "[]", "{}", "[['new-llama']]"]),
    ("blocked_terms", ["3", "[1]", "'@../x'", "'@'", "'@no.txt'", "{}"]),
]


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in CHANGES for value in values],
    ids=lambda part: part[:20],
)
def test_a_recipe_that_cannot_be_says_where(tmp_path, key, value):
    (tmp_path / "r.toml").write_text(RECIPE)
    refused(lambda: load_recipe(KINDS, str(tmp_path / "r.toml"), [f"{key}={value}"]), key.split(".")[-1])


@pytest.mark.parametrize(
    "data", [b"\xff", b"\0", b"kind = " + b"[" * 20_000, b"kind = " + b"9" * 5000, b"x" * 5_000_000, None]
)
def test_a_recipe_that_is_no_toml_is_named(tmp_path, data):
    path = tmp_path / "r.toml"
    os.mkfifo(path) if data is None else path.write_bytes(data)
    refused(lambda: load_recipe(KINDS, str(path)), "r.toml")


LINES = [
    "3", "[]", "null", '{"image": 3}', '{"image": {}}', '{"image": [3]}', '{"image": ["a", null]}', '{"image": "a\\u0000b"}', '{"image": "a", "label": [1]}',
    '{"image": "a", "captions": "one"}', '{"image": "a", "captions": [[1]]}', '{"image": "a", "captions": {}}', '{"image": "a", "tags": 3}',
    '{"image": "a", "phrases": [null]}', '{"image": "a", "conversations": 3}', '{"image": "a", "conversations": [3]}', '{"image": "a", "conversations": [{}]}',
    '{"image": "a", "question": "?", "answers": 3}', '{"image": "a", "question": "?", "answers": []}', "[" * 100_000, '{"image": "a", "x": 1e400}',
    '{"image": "a", "image": "b"}', '{"image": "a", "style": true}', '{"image": ' + json.dumps(["a"] * 100) + "}",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=lambda line: ascii(line[:40]))
def test_a_record_of_another_shape_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f"\n{line}\n")
    refused(lambda: list(read_samples([tmp_path / "a.jsonl"])))
    (tmp_path / "a.json").write_text(f"[{line}]")
    refused(lambda: list(read_samples([tmp_path / "a.json"])))


@pytest.mark.parametrize(
    "value",
    [{"annotations": 3}, {"annotations": [3]}, {"annotations": [{"image_id": [], "caption": "x"}]}, {"annotations": [{"image_id": 1}]},
     {"annotations": [], "images": 3}, {"annotations": [{"image_id": 1, "caption": "a"}], "images": [{"id": 1, "file_name": 3}]},
     {"annotations": [{"image_id": 1, "caption": "a"}], "images": [{"id": {}}]}],
)  # fmt: skip
def test_coco_of_another_shape_is_named(tmp_path, value):
    (tmp_path / "a.json").write_text(json.dumps(value))
    refused(lambda: list(read_samples([tmp_path / "a.json"])), "a.json")


def test_a_line_separator_within_a_caption_ends_no_record(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"image": "a.png", "caption": "one\u2028two"}, ensure_ascii=False), "utf-8"
    )
    ((sample, _),) = read_samples([tmp_path / "a.jsonl"])
    assert sample.captions == ("one\u2028two",)


def tar(path, name="a.json", content=b"{}", size=None, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w") as file:
        for member, data in (("a.png", b"x"), (name, content)):
            info = tarfile.TarInfo(member)
            info.size, info.type = len(data), kind if member == name else tarfile.REGTYPE
            file.addfile(info, io.BytesIO(data))
    if size is not None:
        data = bytearray(path.read_bytes())
        header = bytearray(data[1024:1536])
        header[124:136] = b"%011o\0" % size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        data[1024:1536] = header
        path.write_bytes(data)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 2**32},
        {"content": b"["},
        {"content": b"\xff"},
        {"content": b" " * (2 << 20)},
        {"content": b"[" * 9000},
    ],
)
def test_a_tar_whose_members_lie_is_named(tmp_path, options):
    tar(tmp_path / "a.tar", **options)
    refused(lambda: list(read_samples([tmp_path / "a.tar"])), "a.tar")


@pytest.mark.parametrize("name", ["a.tar", "a.json", "a.jsonl", "metadata.jsonl"])
def test_data_that_is_a_pipe_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    refused(lambda: list(read_samples([tmp_path if name == "metadata.jsonl" else tmp_path / name])), name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"codebook_size": 0, "codes_per_image": 4}',
        '{"codebook_size": 8, "codes_per_image": 1e9}',
        '{"codebook_size": "8", "codes_per_image": 4}',
    ],
)
def test_a_folder_of_codes_that_lies_is_named(tmp_path, text):
    (tmp_path / "codes.json").write_text(text)
    refused(lambda: read_code_shards([tmp_path]), "seed-edge tokenize")


@pytest.mark.parametrize(
    "record", ["3", "{}", '{"key": "a", "codes": 3}', '{"key": "a", "codes": [[1, 2]]}', '{"key": "a", "codes": [[[1], 2]]}', '{"key": "a", "turns": [[1]]}',
               '{"key": "a", "unknown": 1}', '{"key": "a", "held_out": "yes"}', "[" * 5000]
)  # fmt: skip
def test_a_sample_with_codes_of_another_shape_is_named(tmp_path, record):
    (tmp_path / "codes.json").write_text('{"codebook_size": 8, "codes_per_image": 4}')
    tar(tmp_path / "codes-00000.tar", name="00000.json", content=record.encode())
    refused(lambda: read_code_shards([tmp_path]), "codes-00000.tar")


BOOKS = {
    "compressed": lambda path: np.savez_compressed(
        path, vectors=np.zeros((8, 2**20), np.float32), own_rows=[0, 0]
    ),
    "numbers": lambda path: np.savez(path, vectors=np.zeros((8, 2)), own_rows=[0, 0]),
    "objects": lambda path: np.savez(path, vectors=np.array([None]), own_rows=[0, 0]),
    "not finite": lambda path: np.savez(path, vectors=np.full((8, 2), np.nan, np.float32), own_rows=[0, 0]),
    "rows": lambda path: np.savez(path, vectors=np.zeros((8, 2), np.float32), own_rows=[-1, 0]),
    "missing": lambda path: np.savez(path, vectors=np.zeros((8, 2), np.float32)),
    "text": lambda path: path.write_text("x"),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("name", BOOKS)
def test_a_codebook_that_is_none_is_named(tmp_path, name):
    BOOKS[name](tmp_path / CODEBOOK)
    refused(lambda: read_codebook([tmp_path]), CODEBOOK)


def test_a_file_that_the_recipe_does_not_use_is_wrong_usage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "train tokenizer --data d --output o --recipe mini-tokenizer --vit v"
    result = CliRunner().invoke(cli, words.split())
    assert result.exit_code == 2 and "--vit" in result.stderr and not os.listdir(tmp_path)
