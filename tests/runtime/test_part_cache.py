import dataclasses
import logging

import numpy as np
import pytest

import seed_edge
from seed_edge import memory
from seed_edge.bundle import Bundle
from seed_edge.errors import MemoryShortError
from seed_edge.gguf_header import GgufHeader
from seed_edge.manifest import DECODER, ENCODER, UNET, VAE, MemoryUse
from seed_edge.runtime import language_model, part_cache
from seed_edge.runtime.memory_probe import measure_memory
from seed_edge.runtime.onnx_session import choose_device
from seed_edge.runtime.part_cache import BASE_BYTES, PartCache, gpu_layers_that_fit, language_model_memory
from seed_edge.runtime.pipeline import SeedEdge

MEGA = 1 << 20


class Opened:
    """A part that tells when it is closed."""

    def __init__(self, name, events):
        self.name, self.events = name, events
        events.append(f"+{name}")

    def close(self):
        self.events.append(f"-{self.name}")


@pytest.fixture
def bundle(tiny):
    opened = Bundle.open(tiny)
    uses = {
        ENCODER: MemoryUse(10 * MEGA, 15 * MEGA, 12 * MEGA),
        DECODER: MemoryUse(20 * MEGA, 20 * MEGA, 26 * MEGA),
    }
    return dataclasses.replace(opened, manifest=dataclasses.replace(opened.manifest, memory=uses))


@pytest.fixture
def used(bundle):
    """What is opened and closed when parts are used in a given order."""

    def order(*names, **limits):
        events = []
        kept = PartCache(bundle, **limits)
        for name in names:
            kept.get(name, lambda name=name: Opened(name.split(".")[0], events))
        kept.close()
        return events

    return order


def test_parts_stay_open_where_memory_is_plenty(used):
    assert used(ENCODER, DECODER, ENCODER) == ["+encoder", "+decoder", "-encoder", "-decoder"]


def test_the_part_that_was_not_used_for_longest_makes_room_first(bundle, monkeypatch):
    """And when all are closed, the one that was used last is the first."""
    sizes = {name: MemoryUse(10 * MEGA, 10 * MEGA, 10 * MEGA) for name in (ENCODER, DECODER, UNET, VAE)}
    events = []
    kept = PartCache(bundle, limit=BASE_BYTES + 30 * MEGA, trusted=True)
    monkeypatch.setattr(kept, "_uses", sizes)
    for name in (ENCODER, DECODER, UNET, ENCODER, VAE):
        kept.get(name, lambda name=name: Opened(name.split(".")[0], events))
    assert events == ["+encoder", "+decoder", "+unet", "-decoder", "+vae_decoder"]
    kept.close()
    assert events[5:] == ["-vae_decoder", "-encoder", "-unet"]


def test_parts_make_room_for_one_another_within_a_limit(used):
    # the decoder's run takes 26, the encoder keeps the 12 that its own run took
    for allowed, events in (
        (38, ["+encoder", "+decoder", "-encoder", "-decoder"]),
        (37, ["+encoder", "-encoder", "+decoder", "-decoder", "+encoder", "-encoder"]),
        (26, ["+encoder", "-encoder", "+decoder", "-decoder", "+encoder", "-encoder"]),
    ):
        assert used(ENCODER, DECODER, ENCODER, limit=BASE_BYTES + allowed * MEGA) == events


def test_what_does_not_fit_even_alone_is_refused(used):
    with pytest.raises(MemoryShortError, match=r"decoder\.onnx needs"):
        used(ENCODER, DECODER, limit=BASE_BYTES + 25 * MEGA)


def test_one_at_a_time(used):
    assert used(ENCODER, ENCODER, DECODER, one_at_a_time=True) == [
        "+encoder",
        "-encoder",
        "+decoder",
        "-decoder",
    ]


def test_what_is_free_at_the_time_decides_without_a_limit(used, monkeypatch, caplog):
    for free, closed in ((27, False), (25, True)):
        monkeypatch.setattr(part_cache, "available_memory", lambda free=free: free * MEGA)
        monkeypatch.setattr(part_cache, "PLENTY_FACTOR", 1000_000)
        caplog.clear()
        assert ("-encoder" in used(ENCODER, DECODER)[:2]) == closed
        assert ("memory is short: decoder.onnx needs 27 MB, 26 MB are free" in caplog.text) == closed


def test_a_part_that_does_not_fit_the_limit_is_refused_before_it_is_opened(used):
    with pytest.raises(
        MemoryShortError, match=r"decoder\.onnx needs 127 MB .*110 MB are allowed; raise --memory-limit"
    ):
        used(DECODER, limit=110_000_000)


def test_as_many_pictures_at_once_as_fit(bundle):
    assert PartCache(bundle).batch_size(ENCODER, 16) == 16
    assert PartCache(bundle, limit=BASE_BYTES + 20 * MEGA).batch_size(ENCODER, 16) == 5
    assert PartCache(bundle, limit=BASE_BYTES + 12 * MEGA).batch_size(ENCODER, 16) == 1
    assert PartCache(bundle, one_at_a_time=True).batch_size(ENCODER, 16) == 1


def test_the_plan_tells_what_is_taken_and_what_follows(bundle):
    whole = "\n".join(PartCache(bundle).plan())
    assert "encoder.onnx: 10 MB, at most 16 MB" in whole and "all stay open" in whole
    assert "135 MB allowed" in (told := "\n".join(PartCache(bundle, limit=135_000_000).plan()))
    assert "parts are closed when others need the memory" in told
    assert "one is open at a time" in "\n".join(PartCache(bundle, one_at_a_time=True).plan())


def test_parts_on_a_graphics_card_are_reckoned_with_its_memory(bundle, monkeypatch):
    monkeypatch.setattr(part_cache, "free_gpu_memory", lambda: 25 * MEGA)
    kept = PartCache(bundle, limit=BASE_BYTES, on_gpu=(ENCODER, DECODER))
    assert "graphics card: 26 MB free" in "\n".join(kept.plan())
    events = []
    kept.get(ENCODER, lambda: Opened("encoder", events))
    kept.get(DECODER, lambda: Opened("decoder", events))  # too large, but not counted by the limit
    assert events == ["+encoder", "-encoder", "+decoder"]


def test_captions_and_drawings_are_the_same_with_one_part_at_a_time(tiny, examples, caplog):
    with (
        seed_edge.load(tiny, device="cpu") as edge,
        seed_edge.load(tiny, device="cpu", low_memory=True) as low,
    ):
        photo = examples / "coffee.jpg"
        assert low.caption(photo) == edge.caption(photo)
        assert low.caption(photo, beams=3) == edge.caption(photo, beams=3)
        assert low.encode([photo] * 3).tolist() == edge.encode([photo] * 3).tolist()
        with caplog.at_level(logging.DEBUG, "seed_edge"):
            assert np.array_equal(low.draw("a", seed=1).image, edge.draw("a", seed=1).image)
        assert "closing llm.gguf to make room for decoder.onnx" in caplog.text


@pytest.mark.parametrize(("spare", "copied"), [(0, False), (1, True)])
def test_weights_are_copied_into_a_faster_layout_only_where_there_is_room(tiny, monkeypatch, spare, copied):
    bundle, asked, params = Bundle.open(tiny), [], language_model.model_params
    monkeypatch.setattr(
        language_model,
        "model_params",
        lambda layers, repack: (asked.append(repack), params(layers, repack))[1],
    )
    needed = PartCache(bundle).memory_use(bundle.language.file).running + bundle.language_model.stat().st_size
    with SeedEdge(bundle, choose_device("cpu"), memory_limit=BASE_BYTES + needed - 1 + spare) as edge:
        edge.draw_codes("a", seed=1)
    assert asked == [copied]


def test_an_object_that_was_closed_opens_again(tiny, examples):
    edge = seed_edge.load(tiny, device="cpu")
    before = edge.caption(examples / "coffee.jpg", beams=2)
    edge.close()
    assert edge.caption(examples / "coffee.jpg", beams=2) == before
    edge.close()
    edge.close()


def test_a_limit_that_is_too_low_is_one_clear_error(tiny, examples):
    edge = SeedEdge(Bundle.open(tiny), choose_device("cpu"), memory_limit=BASE_BYTES)
    with pytest.raises(MemoryShortError, match=r"encoder\.onnx needs"):
        edge.caption(examples / "coffee.jpg")


def test_a_graph_is_measured_in_a_process_of_its_own(tiny):
    use = measure_memory(tiny / ENCODER)
    if memory.resident_memory() is None:
        assert use is None
    else:
        assert 0 < use.held <= use.opening and use.held <= use.running < 1 << 30


def test_a_language_model_takes_its_weights_and_a_context(tiny):
    bundle = Bundle.open(tiny)
    header, context = GgufHeader.read(bundle.language_model), bundle.language.context_length
    weights = sum(tensor.size for tensor in header.tensors.values())
    layers, width, heads, kept = (
        header.number(key)
        for key in ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    assert header.kv_cache_bytes_per_token() == 2 * 2 * layers * width * kept // heads
    use = language_model_memory(header, context)
    assert use.held >= weights and use.running >= weights + context * header.kv_cache_bytes_per_token()


def test_layers_fill_the_card_from_the_last_one(tiny):
    bundle = Bundle.open(tiny)
    header, context = GgufHeader.read(bundle.language_model), bundle.language.context_length
    layers = header.number("block_count")
    found = [gpu_layers_that_fit(header, context, free) for free in range(0, 4 * MEGA, 1024)]
    assert found == sorted(found) and {found[0], found[-1]} == {0, layers + 1}


def test_memory_of_a_container_counts(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemAvailable:  1000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    for name, text in (
        ("memory.max", "600000"),
        ("memory.current", "500000"),
        ("memory.stat", "anon 1\ninactive_file 70000\n"),
    ):
        (tmp_path / name).write_text(text)
    assert memory.available_memory() == 170_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() == 1_024_000


@pytest.mark.parametrize(("said", "free"), [("3072\n8000\n", 3 << 30), ("[N/A]\n", None), ("", None)])
def test_free_memory_of_a_card_is_what_its_driver_says(tmp_path, monkeypatch, said, free):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{said}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert memory.free_gpu_memory() == free
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert memory.free_gpu_memory() is None
