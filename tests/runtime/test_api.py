"""Inputs, results and errors of the Python API."""

import dataclasses
import io
import math

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from seed_edge import CodesError, DiffusionOptions, ImageError, ImageNotFoundError, PromptError, Sampling
from seed_edge.cli import cli
from seed_edge.image_metadata import AI_MADE, read_record
from seed_edge.runtime.drawing import Drawing


@pytest.fixture
def photo(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8], pixels[:8, 8:], pixels[8:, :8], pixels[8:, 8:] = (
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    )
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def sources(photo):
    """The same image in every form."""
    image = Image.open(photo)
    image.load()
    data = photo.read_bytes()
    return [str(photo), photo, data, bytearray(data), io.BytesIO(data), image, np.asarray(image)]


def test_an_image_comes_in_every_form(edge, photo):
    codes = edge.encode([photo])
    assert codes.tolist() == [[4, 2, 1, 7]]
    assert np.array_equal(edge.encode(sources(photo)), np.repeat(codes, len(sources(photo)), 0))
    assert len({edge.caption(source) for source in sources(photo)}) == 1
    assert np.array_equal(edge.encode(np.stack([np.asarray(Image.open(photo))] * 2)), np.repeat(codes, 2, 0))
    with open(photo, "rb") as file:
        assert edge.reconstruct(file).codes.tolist() == codes[0].tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        7,
        None,
        b"no image",
    ],
)
def test_what_is_no_image_is_refused(edge, wrong):
    with pytest.raises(ImageError):
        edge.caption(wrong)


def test_one_image_where_a_list_is_wanted_is_refused(edge, photo):
    for single in sources(photo):
        for verb in (edge.encode, edge.captions, lambda images: edge.answers(images, "what?")):
            with pytest.raises(ImageError, match="must be a list of images"):
                verb(single)
    with pytest.raises(ImageError, match="must be a list of images, not int"):
        edge.encode(3)
    with pytest.raises(ImageError, match="list is not an image"):
        edge.caption([photo])
    with pytest.raises(ImageNotFoundError):
        edge.caption(photo.with_name("none.png"))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 1 << 63}, "seed"),
        ({"beams": 0}, "beams"),
        ({"beams": 17}, "beams"),
    ],
)
def test_a_value_out_of_range_is_refused_at_the_call(edge, photo, options, name):
    for verb in (lambda: edge.caption(photo, **options), lambda: edge.captions([photo], **options)):
        with pytest.raises(PromptError, match=rf"^{name} is") as caught:
            verb()
        assert isinstance(caught.value, ValueError)
    if name == "seed":
        for verb in (edge.draw, edge.drawings, edge.draw_codes):
            with pytest.raises(PromptError, match=r"^seed is"):
                verb("a house", **options)


def test_other_values_out_of_range_are_refused_by_name(edge):
    with pytest.raises(PromptError, match=r"^n is 0"):
        edge.drawings("a house", n=0)
    with pytest.raises(PromptError, match=r"^prompt must be a string, not list"):
        edge.draw(["a house"])
    with pytest.raises(ValueError, match="temperature"):
        Sampling(math.nan, 0, 1.0)
    for options in (
        {"steps": 1},
        {"guidance": math.nan},
        {"scheduler": "none"},
        {"guided_between": (2.0, 1.0)},
    ):
        with pytest.raises(ValueError, match=next(iter(options)).partition("_")[0]):
            DiffusionOptions(**options)


def test_a_drawing_saves_what_the_command_writes(edge, tiny, tmp_path):
    drawing = edge.draw("a house", seed=3, negative="a cat")
    assert isinstance(drawing, Drawing) and (drawing.prompt, drawing.seed) == ("a house", 3)
    assert drawing.codes.tolist() == edge.draw_codes("a house", seed=3, negative="a cat").tolist()
    assert drawing.candidates.shape == (0, 4)
    for ending, options in ((".png", {}), (".jpg", {}), (".webp", {"metadata": False})):
        path, other = tmp_path / f"api{ending}", tmp_path / f"command{ending}"
        assert drawing.save(path, **options) == path
        arguments = [
            "draw",
            "a house",
            "--seed",
            "3",
            "--negative",
            "a cat",
            "-o",
            str(other),
            "--bundle",
            str(tiny),
        ]
        result = CliRunner().invoke(cli, [*arguments, *(["--no-metadata"] if options else [])])
        assert result.exit_code == 0, result.output
        assert path.read_bytes() == other.read_bytes() and AI_MADE.encode() in path.read_bytes()
    assert read_record(tmp_path / "api.png") == drawing.provenance
    assert drawing.resized(40).image.size == (40, 40) and drawing._repr_png_() == drawing.to_bytes("PNG")
    with pytest.raises(ImageError, match=r"images are written as \.png"):
        drawing.save(tmp_path / "x.gif")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        ".jpg",
        ".jpg",
        ".png",
        ".png",
        ".webp",
        ".webp",
    ]


def test_a_drawing_names_its_other_candidates(edge):
    several = Sampling(5.0, 0, 1.0, best_of=6)
    drawing = edge.draw("a house", seed=3, sampling=several)
    assert drawing.candidates.shape[0] >= 1 and drawing.candidates.shape[1:] == (4,)
    rows = [tuple(row) for row in (drawing.codes, *drawing.candidates)]
    assert len(set(rows)) == len(rows) <= 6 and drawing.provenance.temperature == 5.0


def test_several_drawings_are_those_drawn_alone(edge):
    wanted = [
        (prompt, seed, edge.draw_codes(prompt, seed=seed).tolist())
        for prompt in ("a house", "a cat")
        for seed in (4, 5)
    ]
    found = [
        (each.prompt, each.seed, each.codes.tolist())
        for each in edge.drawings(["a house", "a cat"], n=2, seed=4)
    ]
    assert found == wanted
    assert [each.seed for each in edge.drawings("a house", seeds=[9, 2])] == [9, 2]


def test_a_batch_of_codes_is_decoded_as_each_alone(edge):
    codes = np.array([[4, 2, 1, 7], [0, 1, 2, 3]])
    images = edge.decode_batch(codes)
    assert [image.tobytes() for image in images] == [edge.decode(each).tobytes() for each in codes]
    assert edge.decode_batch([]) == []
    with pytest.raises(CodesError, match=r"write \[codes\]"):
        edge.decode_batch([4, 2, 1, 7])


def log_probabilities(edge, prompt, ids):
    """By reading the ids one after another."""
    model, vocab = edge.engine.language_model, edge.bundle.language.vocab
    logits = [model.prefill(prompt, room=len(ids) + 1), *(model.step(token) for token in ids)][: len(ids)]
    return [
        row[token] - np.logaddexp.reduce(row[vocab.text_mask()])
        for row, token in zip(logits, ids, strict=True)
    ]


@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 4}, {"temperature": 1.0, "seed": 5}])
def test_a_caption_with_details_has_the_scores_of_its_text(edge, photo, options):
    caption = edge.caption(photo, details=True, **options)
    assert caption.text == edge.caption(photo, **options)
    language, model = edge.bundle.language, edge.engine.language_model
    prompt = language.prompts.for_caption(language.vocab, model.tokenize, edge.encode([photo])[0])
    assert language.caption_views == 1  # several views have mean logits
    for scored in (caption, *caption.alternatives):
        ids = [token.id for token in scored.tokens]
        assert model.detokenize(ids) == scored.text == "".join(token.text for token in scored.tokens)
        known = log_probabilities(edge, prompt, [*ids, language.vocab.eos_id])
        assert [token.log_probability for token in scored.tokens] == pytest.approx(known[:-1], abs=0.01)
        ended = len(ids) < language.max_caption_ids
        assert scored.log_probability == pytest.approx(sum(known if ended else known[:-1]), abs=0.01)
    assert bool(caption.alternatives) == (options.get("beams") == 4)
    means = [each.log_probability / len(each.tokens) for each in caption.alternatives]
    assert caption.text not in [each.text for each in caption.alternatives] and all(map(math.isfinite, means))


def test_an_answer_with_details_has_the_scores_of_its_text(edge, photo, monkeypatch):
    language = edge.bundle.language
    taught = dataclasses.replace(
        language, prompts=dataclasses.replace(language.prompts, ask="{bos}{images}{text}")
    )
    monkeypatch.setattr(
        edge.engine, "bundle", dataclasses.replace(edge.bundle, manifest=manifest_with(edge, taught))
    )
    plain, answer = edge.ask(photo, "what is it?"), edge.ask([photo], "what is it?", details=True)
    assert plain == answer.text == "".join(token.text for token in answer.tokens)
    assert answer.log_probability <= sum(token.log_probability for token in answer.tokens) + 1e-6 <= 1e-6
    assert next(edge.answers([photo, Image.new("RGB", (4, 4))], "what is it?")) == plain
    with pytest.raises(ImageError, match="at least one"):
        edge.ask([], "what is it?")


def manifest_with(edge, language):
    return dataclasses.replace(edge.bundle.manifest, language=language)
