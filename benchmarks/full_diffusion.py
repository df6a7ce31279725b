#!/usr/bin/env python3
"""Measures time and memory of export and drawing with a diffusion of stable-diffusion-2-1-unclip's size.

    python benchmarks/full_diffusion.py --work FOLDER [--storage fp16 int8] [--steps 2]

Needs 20 GB of disk in FOLDER and 16 GB of memory. Prints one JSON object per storage of the graphs: seconds
and peak memory (GB) of `seed-edge export`, of `decode` with that many steps at 768 px, of its last stage
alone in tiles (`tiled`) and in one piece (`whole`), each a process of its own, and how far the last two
pictures are apart (PSNR in dB).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from PIL import Image
from process import cost, measured
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

REFERENCE = Path(__file__).parent.parent / "tests" / "fixtures" / "seed2"
DIM, TEXT_WIDTH, CODES = 1024, 1024, 32
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def make(folder: Path) -> None:
    """Write the parts that drawing needs, with random weights; the text encoder is small, since only one of
    its outputs is used.
    """
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=96, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2, attention_head_dim=(5, 10, 20, 20), cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=True, class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * DIM, upcast_attention=True,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    del unet
    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        latent_channels=4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=768,
    ).save_pretrained(folder / "vae")  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=3, hidden_size=TEXT_WIDTH, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=16, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    words = folder / "words"
    words.mkdir()
    (words / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=77)
    tokenizer.save_pretrained(folder / "tokenizer")
    StableUnCLIPImageNormalizer(embedding_dim=DIM).save_pretrained(folder / "image_normalizer")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(folder / "image_noising_scheduler")
    settings = {
        "prediction_type": "v_prediction",
        "steps_offset": 1,
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
    }
    PNDMScheduler(**SCHEDULE, **settings).save_pretrained(folder / "scheduler")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--storage", nargs="+", default=["fp16", "int8"])
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    source, checkpoint = args.work / "diffusion", args.work / "tiny-7"
    if not (source / "scheduler").exists():
        make(source)
    if not (checkpoint / "geometry.json").exists():
        maker = [sys.executable, str(REFERENCE / "make_checkpoint.py"), "--geometry", "tiny", "--seed", "7"]
        measured([*maker, "--out", str(checkpoint)])
    codes, latents = args.work / "codes.json", args.work / "latents.npy"
    codes.write_text(json.dumps(list(range(CODES))))
    np.save(latents, np.random.default_rng(0).standard_normal((1, 4, 96, 96), np.float32))
    for storage in args.storage:
        out = args.work / f"bundle-{storage}"
        edge = [sys.executable, "-m", "seed_edge"]
        decode = [*edge, "decode", "--bundle", str(out)]
        export = [
            *edge,
            "export",
            "--ckpt",
            str(checkpoint),
            "--diffusion",
            str(source),
            "--image-weights",
            storage,
        ]
        result: dict[str, object] = {"storage": storage}
        result["export"] = cost([*export, "--out", str(out), "--overwrite"])
        result["bytes"] = sum(file.stat().st_size for file in out.iterdir())
        result["draw"] = cost(
            [*decode, str(codes), "--steps", str(args.steps), "-o", str(args.work / "drawn.png")]
        )
        pictures = []
        for way in ("tiled", "whole"):
            picture = args.work / f"{way}.png"
            result[way] = cost([*decode, str(latents), f"--{way}", "-o", str(picture)])
            pictures.append(np.asarray(Image.open(picture), np.float64))
        error = np.mean((pictures[0] - pictures[1]) ** 2)
        print(json.dumps(result | {"psnr": round(float(10 * np.log10(255**2 / error)), 1)}), flush=True)


if __name__ == "__main__":
    main()
