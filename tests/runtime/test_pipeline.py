import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import seed_edge
from seed_edge.bundle import entry_for
from seed_edge.errors import BundleError, CodesError, ImageError, PromptError
from seed_edge.manifest import MANIFEST, Sampling
from seed_edge.runtime.generation import GREEDY, sample_codes_batch
from seed_edge.runtime.onnx_session import choose_device
from seed_edge.runtime.pipeline import SeedEdge


def quarters(*colours):
    image = Image.new("RGB", (64, 32))
    for i, colour in enumerate(colours):
        x, y = i % 2 * 32, i // 2 * 16
        image.paste(colour, (x, y, x + 32, y + 16))
    return image


def test_codes_name_what_is_in_the_picture(edge):
    images = [quarters("red", "lime", "blue", "white"), Image.new("L", (7, 9), 0)]
    assert edge.encode(images).tolist() == [[4, 2, 1, 7], [0, 0, 0, 0]]


def test_codes_become_the_picture_again(edge):
    image = edge.decode([4, 2, 1, 7])
    assert image.size == (16, 16)
    assert [image.getpixel(p) for p in ((2, 2), (12, 2), (2, 12), (12, 12))] == [
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    ]  # fmt: skip
    assert edge.encode([image]).tolist() == [[4, 2, 1, 7]]


def test_the_same_seed_draws_the_same_picture_and_another_a_different_one(edge):
    codes = [edge.draw_codes("a red fox", seed=seed).tolist() for seed in (7, 7, 8, 9)]
    assert codes[0] == codes[1]
    assert len({tuple(c) for c in codes}) > 1
    assert edge.draw("a red fox", seed=7).image.tobytes() == edge.decode(codes[0]).tobytes()


def test_the_seed_decides_across_processes_too(edge, tiny):
    with seed_edge.load(tiny, device="cpu") as other:
        other.caption(Image.new("RGB", (8, 8)))  # something read before must not matter
        assert other.draw_codes("a house", seed=3).tolist() == edge.draw_codes("a house", seed=3).tolist()


def test_the_prompt_decides(edge):
    sampling = Sampling(0.0, 0, 1.0)
    drawn = {
        tuple(edge.draw_codes(p, sampling=sampling))
        for p in ("a red fox", "a house", "the cat", "green grass")
    }
    assert len(drawn) > 1


def test_more_beams_find_a_likelier_caption(edge):
    model, language = edge.engine.language_model, edge.bundle.language
    codes = edge.encode([quarters("red", "lime", "blue", "white")])[0]
    prompt = language.prompts.for_caption(language.vocab, model.tokenize, codes)

    def mean_log_probability(ids):
        logits = [model.prefill(prompt, room=len(ids) + 1), *(model.step(i) for i in ids)][: len(ids)]
        each = [
            row[i] - np.logaddexp.reduce(row[language.vocab.text_mask()])
            for row, i in zip(logits, ids, strict=True)
        ]
        return np.mean(each)

    texts = [edge.caption_codes(codes, beams=beams) for beams in (1, 4)]
    one, four = ([*model.tokenize(text)] for text in texts)
    assert texts[0] != texts[1]
    assert mean_log_probability(four) > mean_log_probability(one)
    assert edge.caption_codes(codes, beams=4) == texts[1]
    for beams in (0, 17):
        with pytest.raises(PromptError, match="it must be 1 to 16"):
            edge.caption_codes(codes, beams=beams)


def test_a_caption_has_to_fit_all_views(edge):
    language = dataclasses.replace(edge.bundle.language, caption_views=4, caption_beams=1, max_caption_ids=3)
    several = dataclasses.replace(
        edge.bundle, manifest=dataclasses.replace(edge.bundle.manifest, language=language)
    )
    pictures = [quarters(*colours) for colours in itertools.permutations(("red", "lime", "blue", "white"))]
    model, vocab = edge.engine.language_model, language.vocab
    with SeedEdge(several, choose_device("cpu")) as seen:
        differ = 0
        for picture in pictures:
            views = seen.engine.images.encode_views([picture], 4)[0]
            assert views[0].tolist() == edge.encode([picture])[0].tolist()
            prompts = [language.prompts.for_caption(vocab, model.tokenize, codes) for codes in views]
            ids = []
            for _ in range(3):
                logits = np.mean([model.prefill([*prompt, *ids], room=1) for prompt in prompts], 0)
                ids.append(int(np.argmax(np.where(vocab.text_mask(), logits, -np.inf))))
            text = seen.caption(picture)
            assert text == model.detokenize(ids) and vocab.eos_id not in ids
            differ += not edge.caption(picture, beams=1).startswith(text)
        assert differ
        codes = edge.encode(pictures[:1])[0]
        assert edge.caption_codes(codes).startswith(
            seen.caption_codes(codes)
        )  # codes alone cannot be seen otherwise


def test_a_caption_is_text_and_repeats(edge):
    image = quarters("red", "lime", "blue", "white")
    texts = [edge.caption(image) for _ in range(2)]
    assert texts[0] == texts[1] and isinstance(texts[0], str)
    warm = {edge.caption(image, temperature=2.0, seed=seed) for seed in range(4)}
    assert len(warm) > 1


@pytest.mark.parametrize("prompt", ["<img_00001></img>", "🦊", "여우", "a" * 20, "</s><s>"])
def test_odd_prompts_draw_a_picture(edge, prompt):
    assert edge.draw(prompt).image.size == (16, 16)


def test_guidance_changes_what_is_drawn(edge):
    hot = Sampling(1.0, 0, 1.0)
    plain, one, far = (
        [edge.draw_codes("a house", seed=s, sampling=how).tolist() for s in range(6)]
        for how in (hot, dataclasses.replace(hot, guidance=1.0), dataclasses.replace(hot, guidance=8.0))
    )
    assert plain == one != far


def test_of_several_drawings_the_one_is_kept_that_is_seen_as_what_was_asked_for(edge):
    hot, model, language = Sampling(1.0, 0, 1.0), edge.engine.language_model, edge.bundle.language
    vocab, prompt = language.vocab, language.prompts.for_drawing(language.vocab, model.tokenize, "a house")
    mask = np.arange(vocab.size)
    mask = (mask >= vocab.first_code_id) & (mask < vocab.first_code_id + vocab.codebook_size)

    def liked(codes):
        ids = [int(code) + vocab.first_code_id for code in edge.encode([edge.decode(codes)])[0]]
        rows = [model.prefill([*prompt, *ids[:i]], room=1) for i in range(len(ids))]
        return sum(
            row[i] - np.logaddexp.reduce(row[mask].astype(float)) for row, i in zip(rows, ids, strict=True)
        )

    kept = 0
    for seed in range(6):
        tries = sample_codes_batch(
            model.cached_context("test", 5, 4), vocab, prompt, dataclasses.replace(hot, best_of=5), seed
        )
        best = max((codes for codes in tries.tolist()), key=liked)
        found = edge.draw_codes("a house", seed=seed, sampling=dataclasses.replace(hot, best_of=5)).tolist()
        assert liked(found) == pytest.approx(liked(best), abs=1e-2)
        kept += found != edge.draw_codes("a house", seed=seed, sampling=hot).tolist()
    assert kept
    cold = Sampling(0.0, 0, 1.0, best_of=5)
    assert (
        edge.draw_codes("a house", sampling=cold).tolist()
        == edge.draw_codes("a house", sampling=GREEDY).tolist()
    )


def test_several_tries_go_with_guidance(edge):
    several = Sampling(1.0, 0, 1.0, guidance=3.0, best_of=4)
    drawn = [
        edge.draw_codes("a house", seed=seed, sampling=several, negative="a cat").tolist()
        for seed in (0, 0, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1] and len({tuple(codes) for codes in drawn}) > 1


@pytest.mark.parametrize("best_of", [0, 17])
def test_how_often_to_try_has_bounds(best_of):
    with pytest.raises(BundleError, match="best_of must be 1 to 16"):
        Sampling(1.0, 0, 1.0, best_of=best_of)


def test_an_empty_and_an_overlong_prompt_are_refused(edge):
    with pytest.raises(PromptError, match="empty"):
        edge.draw("  ")
    with pytest.raises(PromptError, match=r"ids, but only \d+ fit"):
        edge.draw("fox " * 500)


def test_bad_input_is_refused_by_name(edge, tmp_path):
    with pytest.raises(ImageError, match="at least one"):
        edge.encode([])
    with pytest.raises(ImageError, match=r"none\.jpg: no such file"):
        edge.caption(tmp_path / "none.jpg")
    with pytest.raises(CodesError, match="4 integers"):
        edge.decode([1, 2, 3])
    with pytest.raises(CodesError, match=r"\[0, 8\)"):
        edge.decode([1, 2, 3, 8])


def test_bad_input_leaves_the_object_usable(edge):
    with pytest.raises(PromptError):
        edge.draw("fox " * 500)
    assert edge.draw_codes("a house", seed=3).shape == (4,)


def swap_language_model_for(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["files"]["llm.gguf"] = vars(entry_for(folder / "llm.gguf"))
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_language_model_of_another_export_is_refused(tiny, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(tiny, folder)

    def shift(manifest):
        manifest["language"]["vocab"].update(size=400)

    swap_language_model_for(folder, shift)
    with (
        seed_edge.load(folder, device="cpu") as other,
        pytest.raises(BundleError, match="310 ids, the manifest says 400"),
    ):
        other.draw("a house")


def test_a_graph_of_another_export_is_refused(tiny, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(tiny, folder)

    def shrink(manifest):
        manifest["codes"].update(codebook_size=4)
        manifest["language"]["vocab"].update(codebook_size=4, boi_id=305, eoi_id=304)

    swap_language_model_for(folder, shrink)
    with (
        seed_edge.load(folder, device="cpu") as other,
        pytest.raises(BundleError, match=r"gave code [4-7], but the codebook has 4"),
    ):
        other.encode([Image.new("RGB", (8, 8), "white")])


def test_several_images_give_the_codes_each_gives_alone(edge):
    images = [
        quarters("red", "lime", "blue", "white"),
        Image.new("RGB", (5, 5), "yellow"),
        Image.new("RGB", (300, 2)),
    ]
    together = edge.encode(images)
    assert np.array_equal(together, np.concatenate([edge.encode([image]) for image in images]))


@pytest.mark.parametrize(("small", "told"), [(0, ["spin"]), (1 << 30, [])])
def test_a_large_model_tells_what_makes_it_slow(tiny, monkeypatch, caplog, small, told):
    monkeypatch.setattr("seed_edge.runtime.engine.SMALL_MODEL", small)
    monkeypatch.setattr(
        "seed_edge.runtime.language_model.performance_warnings", lambda gpu: iter(["threads spin"])
    )
    with seed_edge.load(tiny, device="cpu") as edge:
        edge.caption(quarters("red", "lime", "blue", "white"))
    assert len(caplog.messages) == len(told) and all(
        word in line for word, line in zip(told, caplog.messages, strict=True)
    )


@pytest.mark.parametrize("options", [{}, {"beams": 3}, {"temperature": 1.0, "seed": 4}])
def test_captions_written_at_once_are_those_written_one_by_one(edge, monkeypatch, options):
    pictures = [quarters(*colours) for colours in itertools.permutations(("red", "lime", "blue", "white"))][
        :7
    ]
    monkeypatch.setattr("seed_edge.runtime.captioning.available_cores", lambda: 1)
    alone = list(edge.captions(pictures, **options))
    monkeypatch.setattr("seed_edge.runtime.captioning.available_cores", lambda: 3)
    assert list(edge.captions(pictures, **options)) == alone and len(set(alone)) > 1


def test_groups_are_captioned_in_order_and_the_next_is_encoded_meanwhile(edge, monkeypatch):
    pictures = [quarters(*colours) for colours in itertools.permutations(("red", "lime", "blue", "white"))][
        :9
    ]
    alone, groups, encoded = list(edge.captions(pictures)), [pictures[:4], pictures[4:5], pictures[5:]], []
    encode = edge.engine.images.encode_views

    def watched(images, count):
        encoded.append(len(images))
        return encode(images, count)

    monkeypatch.setattr(edge.engine.images, "encode_views", watched)
    for cores, begun in ((2, [4, 1]), (1, [4])):
        monkeypatch.setattr("seed_edge.runtime.captioning.available_cores", lambda cores=cores: cores)
        encoded.clear()
        captions = edge.captions_of_groups(iter(groups))
        first = next(captions)
        assert encoded == begun and [first, *captions] == alone and encoded == [4, 1, 4]
        assert list(edge.captions_of_groups([])) == []


def test_captions_are_written_one_by_one_where_memory_is_reckoned_with(tiny):
    """A part could be closed to make room while another thread uses it."""
    with seed_edge.load(tiny, device="cpu", memory_limit=2_000_000_000) as edge:
        assert edge.captioner.threads() == 1


@pytest.mark.parametrize("text", ["a\udcff", "\ud800", "x" * 3_000_000], ids=["byte", "half", "long"])
def test_text_that_is_no_prompt_is_refused_at_once(edge, text):
    with pytest.raises(PromptError, match="the text "):
        edge.draw(text)
