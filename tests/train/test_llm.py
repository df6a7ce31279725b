"""SEED-LLaMA's recipes on a tiny LLaMA: pre-training with LoRA, merge, full fine-tuning, instruction tuning,
export.
"""

import contextlib
import dataclasses
import json
import shutil

import numpy as np
import pytest
import sentencepiece
import torch
from helpers import call, write_pieces
from PIL import Image
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from seed_edge.data.code_shards import (
    Codebook,
    CodeSample,
    read_code_shards,
    read_codebook,
    tokenized,
    write_code_shards,
)
from seed_edge.data.samples import Sample
from seed_edge.errors import CheckpointError, DataError
from seed_edge.models.llama_files import extended_vocab
from seed_edge.prompts import TEMPLATES
from seed_edge.train.language.checkpoints import open_llama
from seed_edge.train.language.examples import IGNORED_LABEL, Example, ExampleBuilder, Mixture, collated
from seed_edge.train.language.layers import add_layers
from seed_edge.train.language.lora import merge_lora
from seed_edge.train.language.new_llama import new_llama
from seed_edge.train.language.recipes import LlamaRecipe
from seed_edge.train.language.replay import replay_samples
from seed_edge.train.trainer import Trainer
from seed_edge.vocab import CodeSpace, Vocab

PIECES, SPACE = 310, CodeSpace(8, 4)
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small LLaMA that knows no codes yet, in Hugging Face's layout."""
    out = tmp_path_factory.mktemp("base")
    words = (
        "a red green blue white square which colour is it please provide an accurate description of the given image "
        * 4
    )
    write_pieces(out / "tokenizer.model", words, PIECES)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=PIECES, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, rms_norm_eps=1e-5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(out)
    return out


def sample(number):
    colour = number % 4
    codes = np.array([colour, colour, colour + 4, colour])
    turns = (("Which colour is it?", COLOURS[colour]), ("Sure?", "Yes."))
    return CodeSample(Sample(f"s{number}", captions=(f"a {COLOURS[colour]} square",), turns=turns), (codes,))


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "codes"
    write_code_shards(folder, SPACE, map(sample, range(25)), per_shard=10)
    return folder


@pytest.fixture(scope="module")
def chain(base, codes, tmp_path_factory):
    """The paper's three steps by the commands anyone would use: folders of adapter, merged model, full model,
    second adapter.
    """
    out = tmp_path_factory.mktemp("chain")
    small = [
        "--set=schedule.steps=30",
        "--set=schedule.batch_size=8",
        "--set=schedule.warmup_steps=2",
        "--set=schedule.log_every=5",
    ]
    small += [
        "--set=schedule.learning_rate=3e-3",
        "--set=schedule.gradient_accumulation_steps=1",
        "--set=schedule.save_every=15",
        "--codes",
        codes,
    ]
    call("train", "llm", "--recipe", "seed-llama-pretrain", "--llm", base, "--out", out / "lora", *small)
    call("train", "merge", "--llm", base, "--lora", out / "lora", "--out", out / "merged")
    call(
        "train", "llm", "--recipe", "seed-llama-full", "--llm", out / "merged", "--out", out / "full", *small
    )
    call("train", "llm", "--recipe", "seed-llama-sft", "--llm", out / "full", "--out", out / "sft", *small)
    return out


@pytest.fixture
def stopped_when_saved(monkeypatch):
    """Within, training is interrupted as soon as it has saved."""

    @contextlib.contextmanager
    def within():
        save = Trainer._save

        def stop(self, step, *rest):
            save(self, step, *rest)
            raise KeyboardInterrupt

        with monkeypatch.context() as context:
            context.setattr(Trainer, "_save", stop)
            yield

    return within


def losses_of(folder):
    lines = [json.loads(line) for line in (folder / "state" / "log.jsonl").read_text().splitlines()]
    return [line["text"] + line["codes"] for line in lines if "text" in line]


@pytest.mark.parametrize("name", ["lora", "full", "sft"])
def test_each_step_learns(chain, name):
    losses = losses_of(chain / name)
    assert losses[-1] < 0.9 * losses[0]


def test_an_adapter_holds_what_the_recipe_says(chain):
    config = json.loads((chain / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.05)
    names = set(load_file(chain / "lora" / "adapter_model.safetensors"))
    for part in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert any(part in name and "lora_A" in name for name in names), part
    for part in ("embed_tokens", "lm_head", "input_layernorm", "post_attention_layernorm", "model.norm"):
        assert any(part in name and "lora" not in name for name in names), part


def test_merging_gives_the_adapters_logits(base, chain):
    from peft import PeftModel

    ids = torch.tensor([[1, 5, 9, PIECES + 8, PIECES + 3, PIECES + 9, 40]])
    model, _ = open_llama(base, SPACE)
    adapted = PeftModel.from_pretrained(model, str(chain / "lora")).eval()
    merged = LlamaForCausalLM.from_pretrained(chain / "merged").eval()
    with torch.inference_mode():
        wanted, found = adapted(ids).logits, merged(ids).logits
        assert torch.allclose(found, wanted, atol=1e-4) and found.shape[-1] == PIECES + 10
        assert not torch.allclose(found, open_llama(base, SPACE)[0](ids).logits, atol=1e-2)


def test_the_full_fine_tune_leaves_the_table_alone(chain):
    before, after = (
        load_file(chain / "merged" / "model.safetensors"),
        load_file(chain / "full" / "model.safetensors"),
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(before) - {"model.embed_tokens.weight"}


def test_weights_may_be_mixed_with_those_before(chain, codes, tmp_path, stopped_when_saved):
    settings = [
        "--set=schedule.steps=4",
        "--set=schedule.batch_size=4",
        "--set=schedule.save_every=2",
        "--codes",
        codes,
    ]
    options = [
        "--recipe",
        "seed-llama-full",
        "--llm",
        chain / "merged",
        "--set=schedule.learning_rate=3e-3",
        *settings,
    ]
    half = [*options, "--set=init_weight_share=0.5", "--out", tmp_path / "half"]
    call("train", "llm", *options, "--out", tmp_path / "all")
    with stopped_when_saved():
        call("train", "llm", *half, fails=True)
    assert "resuming at step 2" in call("train", "llm", *half).stderr  # from weights that are not mixed
    folders = (chain / "merged", tmp_path / "all", tmp_path / "half")
    before, whole, mixed = (load_file(folder / "model.safetensors") for folder in folders)
    for name, value in mixed.items():
        assert torch.allclose(value, (before[name] + whole[name]) / 2, atol=1e-6), name
    assert not torch.equal(whole["model.norm.weight"], mixed["model.norm.weight"])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_added_layers_change_nothing_until_they_have_learnt(base, count):
    ids = torch.tensor([[1, 20, 30, 40, 50]])
    model = LlamaForCausalLM.from_pretrained(base).eval()
    before = [each.self_attn.q_proj.weight.clone() for each in model.model.layers]
    with torch.inference_mode():
        wanted = model(ids).logits
        add_layers(model, count)
        assert torch.equal(model(ids).logits, wanted)
        start = model(ids[:, :3], use_cache=True)  # each layer keeps a cache of its own
        torch.testing.assert_close(
            model(ids[:, 3:], past_key_values=start.past_key_values).logits, wanted[:, 3:]
        )
    layers = model.model.layers
    assert len(layers) == model.config.num_hidden_layers == 2 + count
    own = [i for i, each in enumerate(layers) if each.mlp.down_proj.weight.any()]
    assert len(own) == 2 and all(
        torch.equal(layers[i].self_attn.q_proj.weight, b) for i, b in zip(own, before, strict=True)
    )
    assert not layers[len(layers) - 1].self_attn.o_proj.weight.any()  # evenly: the last one is new


def test_a_deeper_checkpoint_learns_and_keeps_its_codes(chain, codes, tmp_path):
    """Together with conversations, of pictures in the shares that the recipe names."""
    recipe, deep, deeper = tmp_path / "deeper.toml", tmp_path / "deep", tmp_path / "deeper"
    recipe.write_text(
        'kind = "tune-llama"\ntemplate = "own-talk"\nadded_layers = 1\nfreeze_code_embeddings = true\ndialogues = true\n'
        "tasks = { converse = 1.0 }\npool_shares = { converse = { sentences = 1.0 } }\n"
        "schedule = { steps = 3, batch_size = 4, learning_rate = 3e-3, warmup_steps = 1 }\n"
    )
    call("train", "llm", "--recipe", recipe, "--llm", chain / "merged", "--codes", codes, "--out", deep)
    start, end = (load_file(each / "model.safetensors") for each in (chain / "merged", deep))
    table = "model.embed_tokens.weight"
    codes_at = slice(PIECES, PIECES + 8)
    assert torch.equal(start[table][codes_at], end[table][codes_at])
    assert not torch.equal(start[table], end[table]) and not torch.equal(
        start["lm_head.weight"], end["lm_head.weight"]
    )
    assert json.loads((deep / "config.json").read_text())["num_hidden_layers"] == 3
    assert end["model.layers.2.mlp.down_proj.weight"].any()
    again = call("train", "llm", "--recipe", recipe, "--llm", deep, "--codes", codes, "--out", deeper)
    assert (
        "step 3" in again.stderr
        and json.loads((deeper / "config.json").read_text())["num_hidden_layers"] == 4
    )


def test_an_adapter_cannot_be_mixed_with_what_was_before(chain, codes, tmp_path):
    options = [
        "--llm",
        chain / "full",
        "--codes",
        codes,
        "--out",
        tmp_path / "out",
        "--set=init_weight_share=0.5",
    ]
    assert (
        "init_weight_share needs training in full"
        in call("train", "llm", "--recipe", "seed-llama-sft", *options, fails=True).stderr
    )


def test_what_was_tuned_becomes_a_bundle(chain, tiny, tmp_path):
    """With the encoder and decoder of another bundle, whose codes these are."""
    out = tmp_path / "bundle"
    options = ("--llm", chain / "full", "--lora", chain / "sft", "--template", "vicuna", "--out", out)
    call("export", "--ckpt", tiny, *options)
    assert (out / "encoder.onnx").read_bytes() == (tiny / "encoder.onnx").read_bytes()
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    assert call("caption", tmp_path / "red.png", "--bundle", out).stdout.strip()
    call("draw", "a red square", "--bundle", out, "-o", tmp_path / "drawn.png")
    call("verify", out)


def test_an_interrupted_adapter_goes_on_exactly(base, codes, tmp_path, stopped_when_saved):
    settings = [
        "--set=schedule.steps=6",
        "--set=schedule.batch_size=4",
        "--set=schedule.save_every=2",
        "--set=schedule.gradient_accumulation_steps=1",
    ]
    options = ["--recipe", "seed-llama-pretrain", "--llm", base, "--codes", codes, *settings]
    call("train", "llm", "--out", tmp_path / "whole", *options)
    with stopped_when_saved():
        call("train", "llm", "--out", tmp_path / "broken", *options, fails=True)
    assert "resuming at step 2" in call("train", "llm", "--out", tmp_path / "broken", *options).stderr
    whole, broken = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_what_was_known_is_rehearsed_beside_what_is_new(chain, base):
    model, vocab = open_llama(chain / "full", SPACE)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    writer = ExampleBuilder(vocab, pieces.encode, TEMPLATES["own"])
    found = replay_samples(model, writer, 6, 0)
    assert [each.sample.style for each in found] == ["noto", None] * 3 and not any(
        each.sample.held_out for each in found
    )
    assert all(each.images[0].shape == (4,) and each.images[0].max() < 8 for each in found)
    assert all(
        np.array_equal(a.images[0], b.images[0])
        for a, b in zip(found, replay_samples(model, writer, 6, 0), strict=True)
    )


# ---- codes and examples
# ------------------------------------------------------------------------------------------


def test_codes_come_back_from_their_shards(codes):
    space, folders = read_code_shards([codes])
    assert space == SPACE and [len(found) for found in folders.values()] == [25]
    found, wanted = folders["codes"][13], sample(13)
    assert found.sample == wanted.sample and np.array_equal(found.images[0], wanted.images[0])
    assert len(list(codes.glob("*.tar"))) == 3


@pytest.mark.parametrize("own", [(0, 0), (2, 2)])
def test_near_codes_begin_near(tmp_path, own):
    codebook = np.repeat(np.random.default_rng(0).normal(size=(4, 3)), 2, axis=0).astype(np.float32)
    codebook[1::2] += 0.01  # rows 0 and 1 are near, 2 and 3, ...
    write_code_shards(tmp_path, SPACE, map(sample, range(3)), Codebook(codebook, own))
    vocab = Vocab(
        size=30,
        first_code_id=10,
        codebook_size=8,
        codes_per_image=4,
        bos_id=1,
        eos_id=2,
        boi_id=18,
        eoi_id=19,
    )
    model = new_llama(vocab, LlamaRecipe(30, 32, 1, 2, 32), 0, read_codebook([tmp_path]))
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = layer.weight.detach()[10:18]
        far = torch.cdist(rows, rows)
        assert far.topk(2, largest=False).indices.sort().values.tolist() == [
            [i // 2 * 2, i // 2 * 2 + 1] for i in range(8)
        ]
        assert 0.5 < rows.std() / layer.weight.detach()[:10].std() < 2
    table, head = (layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings()))
    model(torch.tensor([[1, 12, 5, 19]])).logits.square().mean().backward()
    assert not table.grad[10:18].any() and table.grad[[1, 5]].any(1).all() and head.grad[10:18].any(1).all()
    write_code_shards(tmp_path, SPACE, map(sample, range(3)))
    assert read_codebook([tmp_path]) is None


def test_shards_of_an_interrupted_call_do_not_stay(tmp_path):
    write_code_shards(tmp_path, SPACE, map(sample, range(25)), per_shard=10)
    (tmp_path / "codes.json").unlink()
    assert write_code_shards(tmp_path, SPACE, map(sample, range(3)), per_shard=10) == 3
    assert len(read_code_shards([tmp_path])[1][tmp_path.name]) == 3


def test_sentences_are_written_as_the_model_knows_them(base):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    vocab, rng = extended_vocab(pieces, SPACE.codebook_size, SPACE.codes_per_image), np.random.default_rng(0)
    said = CodeSample(Sample("s", captions=("A Red square .",)), (np.zeros(4, int),))
    for family, text in (("vicuna", "A Red square ."), ("own", "a red square")):
        told = ExampleBuilder(vocab, pieces.encode, TEMPLATES[family]).captioned(said, rng)
        assert told.ids[-told.answer :] == [*pieces.encode(text), vocab.eos_id]


def test_codes_of_another_kind_or_none_are_refused(codes, tmp_path):
    write_code_shards(tmp_path / "other", CodeSpace(16, 4), map(sample, range(2)))
    with pytest.raises(DataError, match="tokenize all with one bundle"):
        read_code_shards([codes, tmp_path / "other"])
    with pytest.raises(DataError, match="seed-edge tokenize"):
        read_code_shards([tmp_path])
    write_code_shards(tmp_path / "wrong", SPACE, [CodeSample(Sample("k"), (np.array([0, 1, 2, 3]),))])
    (tmp_path / "wrong" / "codes.json").write_text('{"codebook_size": 2, "codes_per_image": 4}')
    with pytest.raises(DataError, match="not a sample with codes"):
        read_code_shards([tmp_path / "wrong"])


def test_variations_are_not_promised_where_there_are_none(tiny, tmp_path):
    result = call(
        "tokenize",
        "--data",
        tmp_path,
        "--bundle",
        tiny,
        "--out",
        tmp_path / "codes",
        "--variations",
        2,
        fails=True,
    )
    assert result.exit_code == 2 and "--variations needs a --run without --data" in result.stderr
    assert not (tmp_path / "codes").exists()


def test_a_picture_that_cannot_be_read_is_left_out_and_told(tiny, tmp_path):
    for name, colour in (("a", "red"), ("c", "blue")):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    lines = [json.dumps({"file_name": f"{name}.png", "text": f"a {name}"}) for name in "abcd"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    result = call("tokenize", "--data", tmp_path, "--bundle", tiny, "--out", tmp_path / "codes")
    assert (
        "b: skipped" in result.stderr
        and "d: skipped" in result.stderr
        and "2 samples were skipped" in result.stderr
    )
    space, folders = read_code_shards([tmp_path / "codes"])
    assert space == SPACE
    assert {s.sample.key: s.images[0].tolist() for s in folders["codes"]} == {"a": [4] * 4, "c": [1] * 4}


def test_samples_of_several_pictures_keep_theirs():
    made = tokenized([(Sample("two"), ("x", "y")), (Sample("none"), ()), (Sample("one"), ("z",))],
                     lambda pictures: np.array([[ord(p)] * 4 for p in pictures]), print)  # fmt: skip
    assert [[int(image[0]) for image in each.images] for each in made] == [[120, 121], [], [122]]


@pytest.fixture
def writer(base):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    return ExampleBuilder(
        extended_vocab(pieces, SPACE.codebook_size, SPACE.codes_per_image),
        pieces.encode,
        TEMPLATES["vicuna"],
        True,
    )


def test_examples_end_with_their_answer(writer):
    rng, vocab = np.random.default_rng(0), writer.vocab
    picture = vocab.codes_to_ids(sample(1).images[0])
    told, drawn, asked = (make(sample(1), rng) for make in (writer.captioned, writer.drawn, writer.conversed))
    assert (
        told.ids[-told.answer :] == [*writer.tokenize("a green square."), vocab.eos_id]
        and told.ids[0] == vocab.bos_id
    )
    assert told.ids == [
        *writer.prompts.for_caption(vocab, writer.tokenize, sample(1).images[0]),
        *told.ids[-told.answer :],
    ]
    assert (
        drawn.ids[-drawn.answer :] == [*picture[1:], vocab.eos_id]
        and drawn.ids[-drawn.answer - 1] == vocab.boi_id
    )
    assert asked.ids[-asked.answer :] in [
        [*writer.tokenize(text), vocab.eos_id] for text in ("green.", "Yes.")
    ]


def test_a_picture_drawn_without_words_does_not_teach_that_it_has_no_caption(writer):
    vocab, own = writer.vocab, dataclasses.replace(writer, prompts=TEMPLATES["own"], uncond_prob=1.0)
    drawn = own.drawn(sample(1), np.random.default_rng(0))
    assert drawn.ids == own.prompts.for_caption(
        vocab, own.tokenize, sample(1).images[0]
    )  # a caption could follow
    assert drawn.answer == vocab.codes_per_image + 1


def test_noise_replaces_codes_that_are_read_and_none_that_are_written(writer):
    rng, noisy, known = np.random.default_rng(0), dataclasses.replace(writer, code_noise=0.5), sample(1)
    codes, clean = writer.vocab.codes_to_ids(known.images[0]), writer.captioned(known, rng).ids
    place = clean.index(writer.vocab.boi_id) + 1
    read = np.array([noisy.captioned(known, rng).ids for _ in range(200)])
    kept = (read == clean).mean(0)
    assert all(
        0.4 < share < 0.75 for share in kept[place : place + 4]
    )  # one in eight by chance stays what it was
    assert (np.delete(kept, range(place, place + 4)) == 1).all()
    assert noisy.drawn(known, rng).ids[-6:-2] == codes[1:5]


def test_pairs_are_learnt_whole_in_either_order(writer):
    rng, picture = np.random.default_rng(0), writer.vocab.codes_to_ids(sample(2).images[0])
    pairs = [writer.paired(sample(2), rng) for _ in range(20)]
    text = writer.tokenize("a blue square")
    assert {tuple(pair.ids) for pair in pairs} == {(1, *picture, *text, 2), (1, *text, *picture, 2)}
    assert all(pair.answer == len(pair.ids) - 1 for pair in pairs)


def test_only_answers_are_learnt_and_long_examples_are_cut():
    ids, labels = collated([Example([1, 2, 3, 4, 5], 2), Example([1, 6, 7], 1)], 4)
    assert ids.tolist() == [[1, 2, 3, 4], [1, 6, 7, 0]]
    assert labels.tolist() == [[IGNORED_LABEL] * 3 + [4], [IGNORED_LABEL, IGNORED_LABEL, 7, IGNORED_LABEL]]


def test_a_mixture_draws_by_weight_and_refuses_what_is_not_there(writer):
    some, rng = [sample(0)], np.random.default_rng(0)
    mixture = Mixture(writer, {"caption": 3, "draw": 1}, {"caption": [(some, 1)], "draw": [(some, 1)]})
    drawn = np.mean([mixture.example(rng)[1].ids[-2] == writer.vocab.eoi_id for _ in range(400)])
    assert 0.18 < drawn < 0.32
    with pytest.raises(DataError, match="none of caption, draw"):
        Mixture(writer, {"sing": 1}, {})
    with pytest.raises(DataError, match="no sample has what converse needs"):
        Mixture(writer, {"converse": 1}, {"converse": [([CodeSample(Sample("k", captions=("x",)), ())], 1)]})


@pytest.mark.parametrize("broken", ["tokenizer.model", "config.json", "model.safetensors"])
def test_a_checkpoint_that_lacks_a_file_is_refused(base, tmp_path, broken):
    shutil.copytree(base, tmp_path / "llm")
    (tmp_path / "llm" / broken).unlink()
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        open_llama(tmp_path / "llm", SPACE)


def test_codes_of_another_tokenizer_are_refused(chain):
    with pytest.raises(CheckpointError, match="different image tokenizers"):
        open_llama(chain / "merged", CodeSpace(16, 4))
    with pytest.raises(CheckpointError, match=r"adapter_model|adapter_config|added_tokens"):
        merge_lora(chain / "merged", chain / "nothing", chain / "x")
