"""The whole way: pictures, tokenizer, codes, language model, export, caption and draw; and every way it may
fail.
"""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from helpers import COLOURS, call, shapes, write
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import seed_edge
from seed_edge.bundle import Bundle
from seed_edge.data.code_shards import read_code_shards
from seed_edge.data.webdataset import ShardWriter
from seed_edge.errors import CheckpointError, DataError, ParityError
from seed_edge.export import gguf as gguf_module
from seed_edge.export.gguf import LlamaFolder, permute, write_gguf
from seed_edge.export.parity import LOGITS_KL, language_parity
from seed_edge.manifest import DECODER, ENCODER
from seed_edge.models.checkpoints import load_image_tokenizer
from seed_edge.runtime.language_model import LlamaCpp
from seed_edge.train.pixel.encoding import codes_of, vectors_of_cache
from seed_edge.train.pixel.feature_cache import open_cache, require_disk_space
from seed_edge.train.trainer import Trainer

LANGUAGE_MODEL = "llm.gguf"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run trained for some seconds by the commands anyone would use."""
    folder = tmp_path_factory.mktemp("train")
    shapes(folder / "shapes.tar")
    out, codes = folder / "run", folder / "codes"
    call("train", "tokenizer", "--recipe", "smoke-tokenizer", "--data", folder / "shapes.tar", "--out", out)
    call("tokenize", "--run", out, "--out", codes)
    options = ("--recipe", "smoke-llm", "--pictures", out, "--prompt", "a disc")
    call("train", "llm", "--codes", codes, "--out", out / "llm", *options)
    (folder / "sources.json").write_text(
        json.dumps([{"name": "shapes", "license": "Apache-2.0", "role": "training"}])
    )
    return out


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "bundle"
    photo = out.parent / "photo.png"
    Image.new("RGB", (30, 20), "red").save(photo)
    call(
        "export",
        "--ckpt",
        run,
        "--out",
        out,
        "--photo",
        photo,
        "--license",
        "Apache-2.0",
        "--sources",
        run.parent / "sources.json",
    )
    return out


def test_training_leaves_a_log_a_sheet_and_a_checkpoint(run):
    lines = [json.loads(line) for line in (run / "semantic" / "log.jsonl").read_text().splitlines()]
    assert lines[-2]["step"] == 10 and {"bag_of_words", "captioner", "vq"} <= set(lines[-2])
    assert {"step", "codes_in_use"} <= set(lines[-1])
    (log,) = run.glob("decoder-*/log.jsonl")
    assert {"l1", "perceptual"} <= set(json.loads(log.read_text().splitlines()[-1]))
    assert Image.open(run / "sheets" / "decoder-000020.png").size == (16 * 16, 4 * 16)
    assert (run / "image_tokenizer.safetensors").is_file() and (run / "llm" / "model.safetensors").is_file()
    assert Image.open(run / "llm" / "sheets" / "000060.png").size == (16, 16)
    lines = [json.loads(line) for line in (run / "llm" / "state" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["text"] + lines[0]["codes"] > 1.2 * (lines[-1]["text"] + lines[-1]["codes"])


def test_the_last_stage_changes_the_decoder_alone(run):
    """Language models are trained on the codes, which must stay what they were."""
    first = torch.load(run / "semantic" / "state.pt", weights_only=True)["tensors"]
    last = load_file(run / "image_tokenizer.safetensors")
    changed = {
        n
        for n, t in last.items()
        if f"model.{n}" in first and not np.array_equal(t, first[f"model.{n}"].numpy())
    }
    behind = ("quantize.embedding.", "decode_task_layer.", "pos_embed_image", "blocks_image.", "pixel_head.")
    assert changed == {name for name in last if name.startswith(behind)}
    assert {name for name in last if f"model.{name}" not in first} == {
        name for name in last if name.startswith("trunk.")
    }


def test_a_finished_training_called_again_changes_nothing_and_more_steps_keep_the_codes(run, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    before = load_file(again / "image_tokenizer.safetensors")
    options = ("--recipe", "smoke-tokenizer", "--data", run.parent / "shapes.tar", "--out", again)
    assert "k-means" not in call("train", "tokenizer", *options).stderr
    after = load_file(again / "image_tokenizer.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert (
        "resuming at step 20"
        in call("train", "tokenizer", *options, "--set", "decoder.schedule.steps=24").stderr
    )
    more = load_file(again / "image_tokenizer.safetensors")
    assert np.array_equal(before["quantize.embedding.weight"], more["quantize.embedding.weight"])
    assert not np.array_equal(before["pixel_head.to_rgb.weight"], more["pixel_head.to_rgb.weight"])


def test_the_decoder_may_be_given_more_pictures(run, tmp_path, monkeypatch):
    """Only it learns them: features and codebook stay what they were."""
    again, pairs = tmp_path / "run", tmp_path / "pairs.tar"
    shutil.copytree(run, again)
    with ShardWriter(pairs) as shard:
        for number, colour in enumerate(COLOURS):
            image = Image.new("RGB", (64, 64), "white")
            image.paste(colour, (0, 0, 32, 64))
            write(shard, f"pair-{number}", image, {"phrases": [f"{colour} next to white"], "style": "flat"})
    seen = []
    train = Trainer.run

    def watched(loop, objective, batch_of, after):
        seen.append([batch_of(step, np.random.default_rng(step)) for step in range(6)])
        return train(loop, objective, batch_of, after)

    monkeypatch.setattr(Trainer, "run", watched)
    options = (
        "--recipe",
        "smoke-tokenizer",
        "--data",
        run.parent / "shapes.tar",
        "--out",
        again,
        "--more",
        pairs,
    )
    call(
        "train",
        "tokenizer",
        *options,
        "--set",
        "decoder.schedule.steps=24",
        "--set",
        "decoder.pool_shares={composites=1.0}",
    )
    call("tokenize", "--run", run, "--data", pairs, "--out", tmp_path / "codes")
    codes = {each.sample.key: each.images[0] for each in read_code_shards([tmp_path / "codes"])[1]["codes"]}
    shown = [
        each
        for batch in seen[-1]
        for each in zip(batch["keys"], batch["codes"].numpy(), batch["pixels"], strict=True)
    ]
    assert {key for key, _, _ in shown} == set(codes)
    assert all(np.array_equal(found, codes[key]) for key, found, _ in shown)
    for key, _, pixels in shown:
        colour = Image.new("RGB", (1, 1), COLOURS[int(key[-1])]).getpixel((0, 0))
        assert np.allclose(pixels[:, 8, 3] * 255, colour, atol=12) and pixels[:, 8, 12].min() > 0.95
    before, after = (load_file(each / "image_tokenizer.safetensors") for each in (run, again))
    assert np.array_equal(before["quantize.embedding.weight"], after["quantize.embedding.weight"])
    assert not np.array_equal(before["pixel_head.to_rgb.weight"], after["pixel_head.to_rgb.weight"])
    assert len(open_cache(again / "cache", load_image_tokenizer(again).geometry).samples) == len(COLOURS) * 6
    with ShardWriter(pairs) as shard:
        write(shard, "other", Image.new("RGB", (64, 64)), {"phrases": ["black"], "style": "flat"})
    assert "made from other images" in call("train", "tokenizer", *options, fails=True).stderr


def test_a_disk_too_small_for_pictures_is_told_before_any_is_written(tmp_path, monkeypatch):
    require_disk_space(tmp_path / "new", 1000, "features")
    monkeypatch.setattr(
        "seed_edge.train.pixel.feature_cache.shutil.disk_usage", lambda folder: SimpleNamespace(free=999)
    )
    with pytest.raises(
        DataError, match=r"more pictures need 0\.0 GB, 0\.0 GB are free; choose another --out"
    ):
        require_disk_space(tmp_path / "new", 1000, "more pictures")


def test_other_pictures_become_codes_by_the_tokenizer_of_a_run(run, exported, tmp_path):
    """As by the bundle that is made of it."""
    data = ("--data", run.parent / "shapes.tar")
    call("tokenize", *data, "--run", run, "--out", tmp_path / "run")
    call("tokenize", *data, "--bundle", exported, "--out", tmp_path / "bundle")
    space, own = read_code_shards([tmp_path / "run"])
    also, same = read_code_shards([tmp_path / "bundle"])
    assert space == also and [each.sample for each in own["run"]] == [each.sample for each in same["bundle"]]
    equal = [np.mean(a.images[0] == b.images[0]) for a, b in zip(own["run"], same["bundle"], strict=True)]
    assert np.mean(equal) > 0.98


def test_codes_follow_the_encoder_and_the_codebook(run, tmp_path):
    model = load_image_tokenizer(run)
    cache = open_cache(run / "cache", model.geometry)

    def codes_now():
        return codes_of(model, vectors_of_cache(model, cache, tmp_path / "vectors.npz"))

    codes = codes_now()
    assert (
        all((codes[:, i] // 4 == i).all() for i in (0, 1)) and (codes[:, 2:] >= 8).all()
    )  # semantic queries have their own rows
    model.glance.weight.data *= -1
    other = codes_now()
    assert not np.array_equal(other[:, :2], codes[:, :2]) and np.array_equal(other[:, 2:], codes[:, 2:])
    model.quantize.embedding.weight.data = torch.cat(
        [w.flip(0) for w in model.quantize.embedding.weight.split((4, 4, 8))]
    )
    flipped = codes_now()
    assert np.array_equal(flipped[:, :2] % 4, 3 - other[:, :2] % 4) and np.array_equal(
        flipped[:, 2:], 8 + 15 - other[:, 2:]
    )


def test_a_trained_run_becomes_a_bundle_that_captions_and_draws(exported, tmp_path):
    manifest = Bundle.open(exported).manifest
    vocab = manifest.language.vocab
    assert (vocab.codebook_size, vocab.first_code_id, vocab.size) == (16, 310, 328)
    assert manifest.parity["images"]["equal_codes"] >= 0.95
    assert [source.name for source in manifest.sources] == ["shapes"] and manifest.license == "Apache-2.0"
    picture = tmp_path / "fox.png"
    call("draw", "a red disc", "--bundle", exported, "-o", picture, "--seed", 1)
    assert Image.open(picture).size == (16, 16)
    call("caption", picture, "--bundle", exported)


def test_nothing_of_the_machine_stands_in_the_files(exported, run):
    for name in (ENCODER, DECODER, LANGUAGE_MODEL, "manifest.json"):
        data = (exported / name).read_bytes()
        assert b"site-packages" not in data and str(run).encode() not in data and b".py" not in data


def test_half_precision_is_storage_only(exported):
    graph = onnx.load(exported / ENCODER).graph
    kinds = {tensor.data_type for tensor in graph.initializer if np.prod(tensor.dims) >= 256}
    assert onnx.TensorProto.FLOAT16 in kinds and onnx.TensorProto.FLOAT not in kinds
    assert any(node.op_type == "Attention" for node in graph.node)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_bundle_gives_the_checkpoints_codes_for_any_batch(exported, run, batch):
    from seed_edge.models.checkpoints import load_image_tokenizer

    rng = np.random.default_rng(batch)
    images = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(batch)]
    with seed_edge.load(exported, device="cpu") as edge, torch.inference_mode():
        values = torch.from_numpy(edge.bundle.manifest.preprocessing(images))
        expected = load_image_tokenizer(run).encode(values).numpy()
        assert (
            np.mean(edge.encode(images) == expected) >= 0.9
        )  # fp16 storage: near ties may fall the other way


def test_export_refuses_an_existing_folder_and_replaces_a_bundle_when_told(exported, run, tmp_path):
    result = call("export", "--ckpt", str(run), "--out", str(exported), fails=True)
    assert "--overwrite" in result.stderr
    shutil.copytree(exported, tmp_path / "copy")
    call(
        "export",
        "--ckpt",
        run,
        "--out",
        tmp_path / "copy",
        "--overwrite",
        "--image-weights",
        "fp32",
        "--weight-type",
        "F32",
        "-q",
    )
    assert Bundle.open(tmp_path / "copy").manifest.parity["images"]["equal_codes"] >= 0.99


def test_an_export_that_fails_leaves_no_bundle_and_goes_on_when_mended(run, tmp_path, monkeypatch):
    command = ["export", "--ckpt", str(run), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as context:
        context.setitem(LOGITS_KL, "Q8_0", 0.0)
        result = call(*command, fails=True)
    assert "diverge" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".out.export"]
    assert "image tokenizer: already done" in call(*command).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    call("verify", tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--weight-type", "Q9", "choose one of F32, F16, "),
        ("--image-weights", "int3", "is not one of 'fp32'"),
    ],
)
def test_unknown_weight_types_list_the_known_ones(run, tmp_path, option, value, words):
    result = call("export", "--ckpt", str(run), "--out", str(tmp_path / "o"), option, value, fails=True)
    assert words in result.stderr and result.exit_code == 2


def test_parts_of_different_runs_are_refused(run, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(run, mixed, ignore=shutil.ignore_patterns("cache", "state.pt", "state"))
    added = json.loads((mixed / "llm" / "added_tokens.json").read_text())
    (mixed / "llm" / "added_tokens.json").write_text(
        json.dumps({t: i for t, i in added.items() if t != "<img_00015>"} | {"<other>": added["<img_00015>"]})
    )
    result = call("export", "--ckpt", str(mixed), "--out", str(tmp_path / "out"), fails=True)
    assert "names 15 codes, the image tokenizer has 16" in result.stderr


def test_too_few_texts_for_the_pieces_asked_is_one_line(run, tmp_path):
    options = [
        "--codes",
        str(run.parent / "codes"),
        "--out",
        str(tmp_path / "llm"),
        "--set",
        "model.text_vocab_size=4000",
    ]
    result = call("train", "llm", *options, fails=True)
    assert "lower model.text_vocab_size" in result.stderr
    assert not (tmp_path / "llm" / "tokenizer.model").exists()


# ---- GGUF
# --------------------------------------------------------------------------------------------------------


@pytest.fixture
def llama(run, tmp_path):
    """A copy of the trained language model's folder."""
    folder = tmp_path / "llm"
    shutil.copytree(run / "llm", folder)
    return folder


@pytest.fixture(scope="module", params=[4, 2], ids=["MHA", "GQA"])
def random_llama(request, run, tmp_path_factory):
    """A random LLaMA with the vocabulary of the run; large weights, so that errors show."""
    folder = tmp_path_factory.mktemp("llama")
    for name in ("tokenizer.model", "added_tokens.json"):
        shutil.copy(run / "llm" / name, folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=328, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=request.param, max_position_embeddings=128, initializer_range=0.3, rms_norm_eps=1e-5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_an_f32_file_gives_the_logits_of_transformers(random_llama, tmp_path):
    folder = LlamaFolder.open(random_llama)
    path = tmp_path / "llm.gguf"
    write_gguf(folder, folder.vocab(4), path, "F32", "random")
    ids = [1, 318, 310, 325, 311, 327, 40, 50, 60, 300]
    with torch.inference_mode():
        expected = LlamaForCausalLM.from_pretrained(random_llama)(torch.tensor([ids])).logits[0].numpy()
    model = LlamaCpp(path, 64, precise=True)
    try:
        found = np.stack([model.prefill(ids[:1], room=0), *(model.step(i) for i in ids[1:])])
    finally:
        model.close()
    assert np.abs(found - expected).max() < 1e-3


def test_rows_left_unpermuted_are_noticed(random_llama, tmp_path, monkeypatch):
    folder = LlamaFolder.open(random_llama)
    monkeypatch.setattr(gguf_module, "permute", lambda weight, heads: weight)
    write_gguf(folder, folder.vocab(4), tmp_path / "llm.gguf", "F32", "random")
    with pytest.raises(ParityError, match="diverge"):
        language_parity(folder, tmp_path / "llm.gguf", "F32", folder.vocab(4), 128)


def test_permutation_pairs_the_two_halves_of_each_head():
    rows = np.arange(8)[:, None] * np.ones((1, 2))
    assert permute(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("weight_type", ["F16", "Q8_0"])
def test_smaller_types_stay_within_their_tolerance(random_llama, tmp_path, weight_type):
    folder = LlamaFolder.open(random_llama)
    path = tmp_path / "llm.gguf"
    write_gguf(folder, folder.vocab(4), path, weight_type, "random")
    f32 = tmp_path / "f32.gguf"
    write_gguf(folder, folder.vocab(4), f32, "F32", "random")
    assert path.stat().st_size < 0.62 * f32.stat().st_size
    model = LlamaCpp(path, 64)
    try:
        assert np.isfinite(model.prefill([1, 5, 6], room=1)).all()
    finally:
        model.close()


def edit_added(folder, change):
    path = folder / "added_tokens.json"
    added = json.loads(path.read_text())
    change(added)
    path.write_text(json.dumps(added))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda a: a.update({"<img_00003>": a["<img_00004>"], "<img_00004>": a["<img_00003>"]}),
            "code 3 should have id",
        ),
        (lambda a: a.pop("<img_00003>"), "code 3 should have id"),
        (lambda a: a.pop("<img>"), "does not name <img>"),
        (lambda a: a.pop("</img>"), "does not name </img>"),
        (lambda a: a.update({"<extra>": 400}), "added ids must be 310 to 327"),
        (lambda a: a.update({"<img>": a["</img>"]}), "added ids must be"),
        (lambda a: a.clear(), "names no codes"),
    ],
)
def test_ids_that_do_not_fit_are_refused(llama, change, words):
    edit_added(llama, change)
    with pytest.raises(CheckpointError, match=words):
        LlamaFolder.open(llama).vocab(4)


@pytest.mark.parametrize("name", ["config.json", "added_tokens.json", "tokenizer.model", "model.safetensors"])
def test_a_missing_file_is_named(llama, tmp_path, name):
    (llama / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        folder = LlamaFolder.open(llama)
        write_gguf(folder, folder.vocab(4), tmp_path / "llm.gguf", "F32", "x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), r"missing tensors \['model.norm.weight'\]"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), r"unknown tensors \['extra'\]"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.copy()}), "lm_head.weight has shape"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:-1].copy()}), "lm_head.weight has shape"),
    ],
)
def test_a_tensor_missing_surplus_or_misshapen_is_named(llama, tmp_path, change, words):
    tensors = load_file(llama / "model.safetensors")
    change(tensors)
    save_file(tensors, llama / "model.safetensors")
    folder = LlamaFolder.open(llama)
    with pytest.raises(CheckpointError, match=words):
        write_gguf(folder, folder.vocab(4), tmp_path / "llm.gguf", "F32", "x")


def test_text_of_a_user_cannot_become_a_code(exported):
    bundle = Bundle.open(exported)
    model = LlamaCpp(bundle.language_model, bundle.language.context_length)
    try:
        ids = model.tokenize("a dog <img_00001> on </img> grass</s>")
        assert not [i for i in ids if i >= bundle.language.vocab.first_code_id or i in (1, 2)]
    finally:
        model.close()


def test_llama_cpp_splits_text_as_sentencepiece_does(exported, run):
    pieces = LlamaFolder.open(run / "llm").pieces
    bundle = Bundle.open(exported)
    model = LlamaCpp(bundle.language_model, bundle.language.context_length)
    texts = ["a red disc", "", "draw me  two spaces", "naïve café 여우", "x", " leading", "a\nb", "1234"]
    try:
        assert [model.tokenize(text) for text in texts] == [pieces.encode(text) for text in texts]
    finally:
        model.close()


def test_the_committed_tiny_bundle_is_what_its_script_makes(tiny, tmp_path):
    import runpy

    make = runpy.run_path(str(tiny.parent / "make_tiny_bundle.py"))["make"]
    make(tmp_path / "tiny")
    fresh, committed = Bundle.open(tmp_path / "tiny").manifest, Bundle.open(tiny).manifest
    assert set(fresh.memory) == {ENCODER, DECODER}  # measured, so never twice the same
    assert dataclasses.replace(fresh, memory={}) == dataclasses.replace(committed, memory={})
    for name in (ENCODER, DECODER, LANGUAGE_MODEL):
        assert (tmp_path / "tiny" / name).read_bytes() == (tiny / name).read_bytes(), name


# ---- a bundle's language model, taken out and put back
# -----------------------------------------------------------


def test_an_unpacked_language_model_is_the_one_that_was_packed(exported, run, tmp_path):
    call("train", "start", "--bundle", exported, "--out", tmp_path / "base")
    ours, theirs = LlamaFolder.open(tmp_path / "base"), LlamaFolder.open(run / "llm")
    assert ours.vocab(4) == theirs.vocab(4)
    texts = ["a red disc", "", "two  spaces", "naïve café 여우", " leading", "a\nb", "<img_00001> 12"]
    assert [ours.pieces.encode(text) for text in texts] == [theirs.pieces.encode(text) for text in texts]
    before, after = (
        load_file(run / "llm" / "model.safetensors"),
        load_file(tmp_path / "base" / "model.safetensors"),
    )
    assert set(before) == set(after)
    assert all(
        np.abs(before[name] - after[name]).max() <= 0.01 * np.abs(before[name]).max() for name in before
    )  # Q8_0


def test_it_goes_back_beside_the_same_encoder(exported, tmp_path):
    call("train", "start", "--bundle", exported, "--out", tmp_path / "base")
    call("export", "--ckpt", exported, "--llm", tmp_path / "base", "--out", tmp_path / "again")
    before, after = Bundle.open(exported).manifest, Bundle.open(tmp_path / "again").manifest
    assert (after.language.prompts, after.language.sampling) == (
        before.language.prompts,
        before.language.sampling,
    )
    for name in (ENCODER, DECODER):
        assert after.files[name] == before.files[name]
    call("draw", "a red disc", "--bundle", exported, "-o", tmp_path / "a.png", "--seed", 3)
    call("draw", "a red disc", "--bundle", tmp_path / "again", "-o", tmp_path / "b.png", "--seed", 3)
    assert Image.open(tmp_path / "a.png").tobytes() == Image.open(tmp_path / "b.png").tobytes()


def test_the_embedded_bundle_is_what_a_language_model_goes_beside_unless_told(tmp_path):
    call("train", "start", "--out", tmp_path / "base")
    call("export", "--llm", tmp_path / "base", "--out", tmp_path / "mine")
    before, after = Bundle.open().manifest, Bundle.open(tmp_path / "mine").manifest
    assert after.files[ENCODER] == before.files[ENCODER] and after.name == "mine"


@pytest.mark.parametrize(
    ("options", "says"),
    [((), "give another --llm"), (("--llm", "x", "--diffusion", "y"), "leave out --diffusion")],
)
def test_what_does_not_go_with_a_bundle_is_refused(exported, tmp_path, options, says):
    result = call("export", "--ckpt", str(exported), "--out", str(tmp_path / "o"), *options, fails=True)
    assert says in result.stderr
