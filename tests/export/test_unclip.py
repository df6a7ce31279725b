"""A tiny random stable-unclip pipeline: our drawing equals diffusers' from the same latents and noise."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from helpers import DIM, SCHEDULE, call, write_pieces
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

import seed_edge
from seed_edge.bundle import Bundle
from seed_edge.errors import BundleError, CheckpointError, MemoryShortError
from seed_edge.export.diffusion import UnclipFolder
from seed_edge.manifest import UNET
from seed_edge.runtime import part_cache
from seed_edge.runtime import unclip as unclip_module
from seed_edge.runtime.onnx_session import choose_device
from seed_edge.runtime.part_cache import PartCache
from seed_edge.runtime.unclip import FAST, DiffusionOptions, Unclip

REFERENCE = Path(__file__).parent.parent / "fixtures" / "seed2"


def export(parts, out, image_weights):
    """A bundle without a language model, made by the command."""
    folders = ("--ckpt", parts / "tokenizer", "--diffusion", parts / "diffusion", "--out", out)
    call("export", *folders, "--image-weights", image_weights)


@pytest.fixture(scope="module")
def bundle(parts, tmp_path_factory):
    """Made by the command anyone would use: encodes and draws, has no language model."""
    out = tmp_path_factory.mktemp("bundle") / "tiny-seed2"
    export(parts, out, "fp32")
    return Bundle.open(out)


def drawn_by_us(bundle, embeds, latents, noise, negative=None, **options):
    unclip = Unclip(bundle, choose_device("cpu"))
    return unclip.decode_latents(
        unclip.denoise(embeds, latents, noise, DiffusionOptions(**options), negative), tiled=False
    )


def drawn_by_diffusers(pipeline, kind, embeds, latents, noise, guidance, steps, negative=None):
    """The reference's loop on diffusers' parts: a negative is noised like the positive, none is all zeros."""
    scheduler = kind(
        **SCHEDULE,
        steps_offset=1,
        set_alpha_to_one=False,
        **({"clip_sample": False} if kind is DDIMScheduler else {"skip_prk_steps": True}),
    )
    scheduler.set_timesteps(steps)
    with torch.inference_mode():
        ids = pipeline.tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids
        text = pipeline.text_encoder(ids)[0]

        def noised(e):
            return pipeline.noise_image_embeddings(
                torch.from_numpy(e), noise_level=0, noise=torch.from_numpy(noise)
            )

        positive = noised(embeds)
        away = torch.zeros_like(positive) if negative is None else noised(negative)
        x = torch.from_numpy(latents)
        for t in scheduler.timesteps:
            v = pipeline.unet(x, t, encoder_hidden_states=text, class_labels=positive).sample
            if guidance > 1:
                other = pipeline.unet(x, t, encoder_hidden_states=text, class_labels=away).sample
                v = other + guidance * (v - other)
            x = scheduler.step(v, t, x).prev_sample
        return (
            (pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1).numpy()
        )


def psnr(a, b):
    return -10 * np.log10(np.mean((a - b) ** 2) + 1e-20)


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((1, DIM), dtype=np.float32),
        rng.standard_normal((1, 4, 32, 32), dtype=np.float32),
        rng.standard_normal((1, DIM), dtype=np.float32),
    )


@pytest.mark.parametrize("guidance", [1.0, 10.0])
@pytest.mark.parametrize("with_negative", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("pndm", PNDMScheduler), ("ddim", DDIMScheduler)])
def test_pictures_are_those_of_diffusers(pipeline, bundle, given, name, kind, guidance, with_negative):
    embeds, latents, noise = given
    negative = np.random.default_rng(1).standard_normal((1, DIM), dtype=np.float32) if with_negative else None
    wanted = drawn_by_diffusers(pipeline, kind, embeds, latents, noise, guidance, 8, negative)
    found = drawn_by_us(bundle, embeds, latents, noise, negative, steps=8, guidance=guidance, scheduler=name)
    assert found.shape == (1, 3, 64, 64) and wanted.std() > 0.01
    assert psnr(found, wanted) >= 50


def test_the_whole_pipeline_of_diffusers_agrees(pipeline, bundle, given):
    embeds, latents, _ = given
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn((1, DIM), generator=torch.Generator().manual_seed(3)).numpy()
    wanted = pipeline(
        prompt="", image_embeds=torch.from_numpy(embeds), latents=torch.from_numpy(latents), noise_level=0,
        num_inference_steps=6, guidance_scale=10, generator=generator, output_type="np",
    ).images.transpose(0, 3, 1, 2)  # fmt: skip
    found = drawn_by_us(bundle, embeds, latents, noise, steps=6)
    assert psnr(found, wanted) >= 50


def test_the_defaults_are_the_references(bundle):
    settings = bundle.diffusion
    assert (settings.scheduler, settings.steps, settings.guidance) == ("pndm", 20, 10.0)
    assert (
        bundle.manifest.kind == "unclip"
        and bundle.manifest.output_size == 64
        and bundle.manifest.image_embed_dim == DIM
    )


def test_seed_options_and_negative_decide_the_picture(bundle):
    with seed_edge.load(bundle.path, device="cpu") as edge:
        quick, codes = DiffusionOptions(steps=3), [5] * 32
        first, again, other = (edge.decode(codes, seed=s, options=quick).tobytes() for s in (1, 1, 2))
        assert first == again != other
        assert edge.decode(codes, seed=1, options=DiffusionOptions(steps=3, guidance=1)).tobytes() != first
        assert edge.decode(codes, seed=1, options=quick, negative=[9] * 32).tobytes() != first


def test_tiles_give_nearly_the_whole_picture(bundle, given, monkeypatch):
    monkeypatch.setattr(unclip_module, "TILE", 24)
    unclip = Unclip(bundle, choose_device("cpu"))
    final = unclip.denoise(*given, DiffusionOptions(steps=3))
    whole, tiled = unclip.decode_latents(final, tiled=False), unclip.decode_latents(final, tiled=True)
    assert (
        whole.shape == tiled.shape and 25 < psnr(whole, tiled) < 90
    )  # norms see a tile instead of the picture


def test_memory_decides_between_whole_and_tiles_and_says_so(bundle, given, monkeypatch, caplog):
    for free, tiles in ((10**12, 0), (None, 0), (1000, 1)):
        caplog.clear()
        monkeypatch.setattr(part_cache, "available_memory", lambda free=free: free)
        kept = PartCache(bundle)
        unclip = Unclip(bundle, choose_device("cpu"), kept)
        final = unclip.denoise(*given, DiffusionOptions(steps=2))
        unclip.decode_latents(final)
        assert len([r for r in caplog.records if "decoding in tiles" in r.message]) == tiles
        assert kept.is_open(UNET) == (not tiles)  # where memory is short, the network of the steps goes first


def test_what_leaving_the_network_frees_may_be_enough_for_a_whole_picture(bundle, given, monkeypatch, caplog):
    monkeypatch.setattr(part_cache, "available_memory", lambda: 1000)
    kept = PartCache(bundle)
    unclip = Unclip(bundle, choose_device("cpu"), kept)
    final = unclip.denoise(*given, DiffusionOptions(steps=2))
    monkeypatch.setattr(part_cache, "available_memory", lambda: 1000 if kept.is_open(UNET) else 10**12)
    unclip.decode_latents(final)
    assert not kept.is_open(UNET) and not [r for r in caplog.records if "tiles" in r.message]
    assert unclip.denoise(*given, DiffusionOptions(steps=2)).shape == final.shape


def test_a_last_stage_that_runs_out_of_memory_is_done_in_tiles_unless_whole_was_asked_for(
    bundle, given, monkeypatch, caplog
):
    developed = Unclip._decode_latents

    def short(self, latents, tiled):
        if not tiled:
            raise MemoryShortError("vae_decoder.onnx ran out of memory")
        return developed(self, latents, tiled)

    monkeypatch.setattr(Unclip, "_decode_latents", short)
    unclip = Unclip(bundle, choose_device("cpu"))
    final = unclip.denoise(*given, DiffusionOptions(steps=2))
    assert np.array_equal(unclip.decode_latents(final), unclip.decode_latents(final, tiled=True))
    assert "ran out of memory; decoding in tiles" in caplog.text
    with pytest.raises(MemoryShortError):
        unclip.decode_latents(final, tiled=False)


def test_what_was_drawn_is_kept_when_the_last_stage_fails(bundle, tmp_path, monkeypatch):
    codes, picture, again = tmp_path / "codes.txt", tmp_path / "fox.png", tmp_path / "again.png"
    codes.write_text(" ".join(["5"] * 32))
    arguments = ["decode", codes, "--bundle", bundle.path, "--steps", 3, "-o"]
    call(*arguments, picture)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["codes.txt", "fox.png"]

    def fail(self, latents, tiled):
        raise BundleError("vae failed")

    with monkeypatch.context() as patch:
        patch.setattr(Unclip, "_decode_latents", fail)
        result = call(*arguments, again, fails=True)
    assert f"try `seed-edge decode {tmp_path / 'again.npy'} -o {again} --tiled`" in result.stderr
    call("decode", tmp_path / "again.npy", "--bundle", bundle.path, "-o", again)
    assert Image.open(again).tobytes() == Image.open(picture).tobytes()

    def interrupt(self, latents, tiled):
        raise KeyboardInterrupt

    monkeypatch.setattr(Unclip, "_decode_latents", interrupt)
    call(*arguments, tmp_path / "third.png", fails=True)
    assert not list(tmp_path.glob("third*"))


def test_latents_that_do_not_fit_are_refused(bundle, tmp_path):
    np.save(tmp_path / "odd.npy", np.zeros((1, 4, 8, 8), np.float32))
    (tmp_path / "no.npy").write_text("no array")
    for name, words in (("odd", "have shape (1, 4, 8, 8)"), ("no", "cannot be read as latents")):
        result = call(
            "decode", tmp_path / f"{name}.npy", "--bundle", bundle.path, "-o", tmp_path / "x.png", fails=True
        )
        assert words in result.stderr


def test_fast_asks_a_third_as_often_and_may_be_changed(bundle, given, tmp_path, monkeypatch):
    unclip, asked, predict = Unclip(bundle, choose_device("cpu")), [], Unclip.predict
    assert unclip.evaluations(DiffusionOptions()) == 42
    assert unclip.evaluations(FAST) <= 14
    assert unclip.evaluations(DiffusionOptions(steps=5, guidance=1)) == 6

    def counted(self, latents, timestep, labels):
        asked.append(len(latents))
        return predict(self, latents, timestep, labels)

    monkeypatch.setattr(Unclip, "predict", counted)
    unclip.denoise(*given, FAST)
    assert sum(asked) == unclip.evaluations(FAST)
    codes = tmp_path / "codes.txt"
    codes.write_text(" ".join(["5"] * 32))
    asked.clear()
    call("decode", codes, "--bundle", bundle.path, "--fast", "--guidance", 1, "-o", tmp_path / "a.png")
    assert asked == [1] * FAST.steps


def test_progress_is_told_per_evaluation(bundle):
    seen = []
    with seed_edge.load(bundle.path, device="cpu") as edge:
        edge.decode(
            [5] * 32,
            options=DiffusionOptions(steps=3),
            progress=lambda done, total: seen.append((done, total)),
        )
    assert seen == [(i, 4) for i in range(1, 5)]


def test_what_is_missing_says_which_option_adds_it(bundle, parts, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (30, 20), "red").save(photo)
    result = call("caption", photo, "--bundle", bundle.path, fails=True)
    assert "export with --llm" in result.stderr
    call("export", "--ckpt", parts / "tokenizer", "--out", tmp_path / "bare")
    assert len(call("encode", photo, "--bundle", tmp_path / "bare").stdout.split()) == 32
    with seed_edge.load(tmp_path / "bare", device="cpu") as edge:
        for attempt in (
            lambda: edge.decode([5] * 32),
            lambda: edge.draw("a fox"),
        ):  # before it looks for the missing LLM
            with pytest.raises(BundleError, match="export with --diffusion"):
                attempt()


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A random LLaMA with SEED's 8,194 added tokens, and the wrong bos and eos that the published 8B has."""
    folder = tmp_path_factory.mktemp("llama") / "seed-llama-tiny-sft"
    folder.mkdir()
    words = "USER: please draw a red fox in the snow\nASSISTANT: a picture of it " * 4
    write_pieces(folder / "tokenizer.model", words, 310)
    added = {f"<img_{code:05d}>": 310 + code for code in range(8192)}
    (folder / "added_tokens.json").write_text(json.dumps(added | {"<img>": 310 + 8192, "</img>": 310 + 8193}))
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=310 + 8194, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, initializer_range=0.05, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_whole_bundle_of_official_parts_captions_and_draws(parts, llm, tmp_path):
    out, photo, picture = tmp_path / "seed-llama-tiny", tmp_path / "photo.png", tmp_path / "fox.png"
    Image.new("RGB", (30, 20), "red").save(photo)
    common = ["--ckpt", parts / "tokenizer", "--diffusion", parts / "diffusion", "--llm", llm, "--out", out]
    result = call("export", *common, fails=True)
    assert "give --template, one of vicuna, llama2, plain" in result.stderr
    result = call(
        "export",
        *common,
        "--template",
        "vicuna",
        "--weight-type",
        "Q4_K_M",
        "--photo",
        REFERENCE / "square_rgb.png",
    )
    assert "prompts of family vicuna" in result.stderr and "told from" not in result.stderr
    assert "config.json says eos_token_id 1, the tokenizer 2" in result.stderr
    bundle = Bundle.open(out)
    assert (
        bundle.language.file == "seed-llama-tiny-sft-5.7M-Q4_K_M.gguf" and bundle.language.vocab.eos_id == 2
    )
    call("caption", photo, "--bundle", out)
    walk = ["--steps", 3, "--guidance", 2, "--scheduler", "dpm++", "--seed", 3]
    call("draw", "a red fox in the snow", "--bundle", out, *walk, "-o", picture)
    assert Image.open(picture).size == (64, 64)
    assert "hashes equal; self-test: 100%" in call("verify", out).stdout
    result = call("draw", "a fox", "--bundle", out, "--tries", 4, "-o", picture, fails=True)
    assert "too slow to choose among 4 candidates; use --best-of 1" in result.output
    result = call("draw", "a fox", "--bundle", out, "--scheduler", "euler", "-o", picture, fails=True)
    assert "'pndm', 'ddim', 'dpm++'" in result.stderr
    (out / "unet.onnx").write_bytes((out / "vae_decoder.onnx").read_bytes())
    result = call("draw", "a fox", "--bundle", out, "-o", picture, fails=True)
    assert "unet.onnx has" in result.stderr


@pytest.mark.parametrize("part", ["unet", "text_encoder", "image_normalizer", "scheduler"])
def test_a_missing_part_of_the_diffusion_is_named(parts, tmp_path, part):
    shutil.copytree(parts / "diffusion", tmp_path / "d")
    shutil.rmtree(tmp_path / "d" / part)
    with pytest.raises(CheckpointError, match=f"no folder {part}"):
        UnclipFolder.open(tmp_path / "d")


def test_a_model_that_does_not_predict_v_is_refused(parts, tmp_path):
    shutil.copytree(parts / "diffusion", tmp_path / "d")
    path = tmp_path / "d" / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("v_prediction", "epsilon"))
    with pytest.raises(CheckpointError, match="predicts epsilon, not v"):
        UnclipFolder.open(tmp_path / "d")


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_smaller_weights_draw_nearly_the_same(parts, bundle, given, tmp_path, storage):
    out = tmp_path / storage
    export(parts, out, storage)
    exact, smaller = (drawn_by_us(b, *given, steps=4, guidance=2.0) for b in (bundle, Bundle.open(out)))
    assert psnr(exact, smaller) > {"fp16": 45, "int8": 20}[storage]
    assert (out / "unet.onnx").stat().st_size < 0.7 * bundle.unet.stat().st_size
