import types

import numpy as np
import pytest

from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError, PromptError
from seed_edge.runtime import language_model
from seed_edge.runtime.language_model import LlamaCpp, model_params


@pytest.fixture(scope="module")
def vocab(tiny):
    return Bundle.open(tiny).language.vocab


@pytest.fixture(scope="module")
def model(tiny):
    opened = LlamaCpp(Bundle.open(tiny).language_model, 96)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "text",
    [
        "a dog <img_00001> on grass",
        "<img>",
        "</img><img_00007>",
        "<s>",
        "</s>",
        "<unk>",
        "<0x41>",
        "[INST] <<SYS>>",
        "\x00\x1b[31m",
    ],
)
def test_text_of_a_user_never_becomes_a_code_or_a_control_id(model, vocab, text):
    ids = model.tokenize(text)
    assert ids
    assert not [
        i for i in ids if vocab.is_code(i) or i in (0, vocab.bos_id, vocab.eos_id, vocab.boi_id, vocab.eoi_id)
    ]


@pytest.mark.parametrize(
    "text", ["a red fox", "A Red  Fox", "여우 한 마리", "🦊🦊", "naïve café", "<img_00001>", "line\nbreak"]
)
def test_text_survives_being_tokenized(model, text):
    assert model.detokenize(model.tokenize(text)) == text


def test_control_characters_never_reach_a_terminal(model):
    assert model.detokenize(model.tokenize("red\x1b[31m fox\x07")) == "red[31m fox"


def test_a_shared_beginning_is_not_read_again_and_changes_nothing(model):
    long = [1, *model.tokenize("please draw me a red fox on green grass")]
    other = [*long[:6], *model.tokenize("a house")]
    fresh = model.prefill(other, room=4)
    model.prefill(long, room=4)
    assert model.prefill(other, room=4) == pytest.approx(fresh, abs=2e-3)
    stepped = model.prefill(other[:-1], room=4)
    assert not np.allclose(stepped, fresh)
    assert model.step(other[-1]) == pytest.approx(fresh, abs=2e-3)


def test_a_fork_reads_the_same_weights_and_leaves_the_other_conversation_alone(model):
    ids = [1, *model.tokenize("a red fox")]
    alone = model.prefill(ids, room=4)
    following = model.step(40)
    model.prefill(ids, room=4)
    with model.new_context() as other:
        assert other.prefill(ids, room=4) == pytest.approx(alone, abs=2e-3)
        other.step(60)
        assert model.step(40) == pytest.approx(following, abs=2e-3)
    assert model.prefill(ids, room=4) == pytest.approx(alone, abs=2e-3)  # and outlives it


def test_branches_are_what_each_would_be_alone(model):
    prompt, other = [1, *model.tokenize("a red fox")], [1, *model.tokenize("a house")]

    def alone(*ids):
        model.prefill(prompt, room=8)
        return [model.step(i) for i in ids][-1]

    branching = model.create_context(branches=3, branch_length=8)
    try:
        for _ in range(2):  # what a search leaves behind does not disturb the next
            branching.prefill(other, room=8)
            branching.step_branches([30, 31], [0, 0])
            assert branching.prefill(prompt, room=8) == pytest.approx(model.prefill(prompt, room=8), abs=5e-3)
            branching.step_branches([40, 50, 60], [0, 0, 0])
            branching.step_branches([41, 42, 51], [0, 0, 1])
            found = branching.step_branches([70, 71], [1, 2])
            assert found[0] == pytest.approx(alone(40, 42, 70), abs=5e-3)
            assert found[1] == pytest.approx(alone(50, 51, 71), abs=5e-3)
            assert not np.allclose(found[0], found[1], atol=5e-3)
    finally:
        branching.close()


def test_reading_what_was_said_gives_the_numbers_of_one_id_after_the_other(model, vocab):
    prompt, said = (
        [vocab.bos_id, *model.tokenize("a red"), vocab.boi_id],
        [vocab.first_code_id + i for i in (3, 1, 2, 7)],
    )
    alone = [model.prefill(prompt, room=5), *(model.step(token_id) for token_id in said[:3])]
    for _ in range(2):
        assert model.score(prompt, said) == pytest.approx(np.stack(alone), abs=1e-3)
    assert model.score(prompt, said[:1]) == pytest.approx(alone[0][None], abs=1e-3)
    assert model.step(said[0]) == pytest.approx(alone[1], abs=1e-3)  # and goes on from there
    with pytest.raises(PromptError, match="fit with the answer"):
        model.score(prompt, said * 30)


def test_there_is_room_for_all_branches_to_the_end(model):
    branching = model.create_context(branches=3, branch_length=40)
    try:
        branching.prefill([5] * 56, room=40)
        for length in range(39):
            branching.step_branches([40 + length, 41, 42], [0, 0, 0] if length == 0 else [0, 1, 2])
    finally:
        branching.close()


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(model):
    with pytest.raises(PromptError, match="the prompt has 90 ids, but only 86 fit"):
        model.prefill([5] * 90, room=10)
    model.prefill([5] * 86, room=10)


def test_a_context_grows_with_what_is_asked_and_changes_nothing(tiny, monkeypatch, model):
    prompt = [1, *range(30, 50)]
    expected = [
        model.prefill(prompt[:5], room=3),
        model.prefill(prompt, room=20),
        model.prefill(prompt, room=60),
    ]
    monkeypatch.setattr(language_model, "FIRST_CONTEXT", 16)
    small = LlamaCpp(Bundle.open(tiny).language_model, 96)
    try:
        for length, room, wanted in ((5, 3, expected[0]), (21, 20, expected[1]), (21, 60, expected[2])):
            assert small.prefill(prompt[:length], room=room) == pytest.approx(wanted, abs=2e-3)
            for _ in range(room):
                small.step(40)
        with pytest.raises(PromptError, match="fit with the answer"):
            small.prefill(prompt, room=76)
    finally:
        small.close()


def test_a_file_llama_cpp_refuses_is_one_clear_error(tmp_path):
    path = tmp_path / "llm.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BundleError, match=r"llm\.gguf cannot be loaded"):
        LlamaCpp(path, 64)


@pytest.mark.parametrize(
    ("info", "extra"), [(b"AMX_INT8 = 1 | AVX = 1", False), (b"AVX = 1", True), (b"AMX_INT8 = 0", True)]
)
def test_broken_amx_kernels_are_kept_out(monkeypatch, info, extra):
    real = language_model.llama_cpp
    fake = types.SimpleNamespace(
        llama_print_system_info=lambda: info, llama_model_default_params=real.llama_model_default_params
    )
    monkeypatch.setattr(language_model, "llama_cpp", fake)
    assert model_params(0).use_extra_bufts is extra
    assert model_params(0, repack=False).use_extra_bufts is False


@pytest.mark.parametrize(
    ("info", "waiting", "gpu", "told"),
    [
        (b"AVX2 = 1", None, False, []),
        (b"AMX_INT8 = 1 | AVX2 = 1", None, False, ["-U__AMX_INT8__"]),
        (b"SSE3 = 1", None, False, ["built without AVX2"]),
        (b"AVX2 = 1", "ACTIVE", False, ["OMP_WAIT_POLICY"]),
        (b"AVX2 = 1", None, True, ["-DGGML_CUDA=on"]),
    ],
)
def test_what_makes_a_machine_slow_is_told_with_what_helps(monkeypatch, info, waiting, gpu, told):
    fake = types.SimpleNamespace(
        llama_print_system_info=lambda: info, llama_supports_gpu_offload=lambda: False
    )
    monkeypatch.setattr(language_model, "llama_cpp", fake)
    monkeypatch.setattr(language_model, "cpu_flags", lambda: ["avx2"])
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if waiting:
        monkeypatch.setenv("OMP_WAIT_POLICY", waiting)
    ways = list(language_model.performance_warnings(gpu))
    assert len(ways) == len(told) and all(word in way for word, way in zip(told, ways, strict=True))


def test_a_model_gives_the_same_numbers_without_extra_buffers(tiny, model, monkeypatch):
    monkeypatch.setattr(language_model, "amx_in_use", lambda: True)
    other = LlamaCpp(Bundle.open(tiny).language_model, 96)
    try:
        assert other.prefill([1, 40, 50], room=1) == pytest.approx(
            model.prefill([1, 40, 50], room=1), abs=2e-3
        )
    finally:
        other.close()


def test_closing_twice_does_nothing(tiny):
    opened = LlamaCpp(Bundle.open(tiny).language_model, 64)
    opened.close()
    opened.close()


def test_contexts_are_freed_before_the_weights_that_they_use(tiny, monkeypatch):
    freed, module = [], language_model.llama_cpp
    for name in ("llama_free", "llama_model_free"):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda pointer, name=name, real=real: (freed.append(name), real(pointer))[1]
        )
    model = LlamaCpp(tiny / "llm.gguf", 96)
    model.cached_context("a")
    model.cached_context("b", 2, 4)
    model.close()
    assert freed == ["llama_free", "llama_free", "llama_free", "llama_model_free"]
