"""Converts the de-tokenizer's diffusion model from a folder in diffusers' layout to two graphs and a few
arrays.

SEED always draws with an empty prompt: its embedding is computed once and becomes a constant of the UNet's
graph, so a bundle contains neither the text encoder nor the vision tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seed_edge.errors import CheckpointError
from seed_edge.export.hf_weights import shapes_in
from seed_edge.export.onnx import export_graph
from seed_edge.graphs import unet_graph, vae_graph
from seed_edge.manifest import IMAGE_NOISE, UNET, VAE, Diffusion
from seed_edge.models.checkpoints import UNREADABLE, check_not_inflated, reason_of
from seed_edge.models.fields import Fields

REFERENCE_STEPS, REFERENCE_GUIDANCE = 20, 10.0
SCHEDULER, CONFIG = "scheduler_config.json", "config.json"
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
MAX_TIMESTEPS, MAX_OFFSET = 10_000, 1000
MAX_BLOCKS = 16
MAX_CONFIG_VALUES = {
    "sample_size": 512,
    "in_channels": 64,
    "out_channels": 64,
    "latent_channels": 64,
    "block_out_channels": 4096,
    "layers_per_block": 16,
    "transformer_layers_per_block": 64,
    "attention_head_dim": 1024,
    "num_attention_heads": 1024,
    "norm_num_groups": 1024,
    "cross_attention_dim": 8192,
    "projection_class_embeddings_input_dim": 1 << 16,
    "num_hidden_layers": 128,
    "hidden_size": 8192,
    "intermediate_size": 1 << 16,
    "projection_dim": 1 << 16,
    "embedding_dim": 1 << 16,
    "vocab_size": 1 << 20,
    "max_position_embeddings": 1 << 16,
}
"""Maximum of each value that determines sizes, in the configurations of UNet, VAE, text encoder and
normaliser.
"""
PARTS = (
    "unet",
    "vae",
    "text_encoder",
    "tokenizer",
    "image_normalizer",
    "image_noising_scheduler",
    "scheduler",
)

TRACED = ("unet", "vae")
"""Parts that become graphs."""
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def weight_file(folder: Path) -> Path:
    """Return the weight file of one part.

    Raises:
        CheckpointError: the folder has none.
    """
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(
            f"{folder} holds none of {', '.join(WEIGHTS)}; --diffusion takes a whole "
            "stable-diffusion-2-1-unclip"
        )
    return file


class UnetWithoutText(nn.Module):
    """Wrapper for tracing: latents, timestep and class labels to v; the empty prompt is a constant."""

    empty_text: Tensor

    def __init__(self, unet: nn.Module, empty_text: Tensor) -> None:
        super().__init__()
        self.unet = unet
        self.register_buffer("empty_text", empty_text)

    def forward(self, latents: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        text = self.empty_text.expand(latents.shape[0], -1, -1)
        return self.unet(
            latents, timestep, encoder_hidden_states=text, class_labels=class_labels, return_dict=False
        )[0]


class VaeDecoder(nn.Module):
    """Wrapper for tracing: scaled latents to pixels in [0, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.scale = vae, float(vae.config.scaling_factor)

    def forward(self, latents: Tensor) -> Tensor:
        pixels = self.vae.decode(latents / self.scale, return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class UnclipFolder:
    """The parts of a `stable-diffusion-2-1-unclip` folder that drawing needs, loaded as fp32."""

    path: Path
    unet: Any
    vae: Any
    empty_text: Tensor
    """(1, 77, cross-attention width)"""
    mean: Tensor
    std: Tensor
    noise_alpha: float
    alphas_cumprod: Tensor
    steps_offset: int
    final_alpha_one: bool

    @classmethod
    def open(cls, path: Path) -> UnclipFolder:
        """Load the parts.

        Raises:
            CheckpointError: a part is missing, damaged, or does not predict v.
        """
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
            StableUnCLIPImageNormalizer,
        )
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        from transformers import CLIPTextModel, CLIPTokenizer

        for part in PARTS:
            if not (path / part).is_dir():
                raise CheckpointError(
                    f"{path} has no folder {part}; --diffusion takes a whole stable-diffusion-2-1-unclip"
                )
        schedule = Fields.read(path / "scheduler" / SCHEDULER)
        predicted = schedule.text("prediction_type", default="nothing")
        if predicted != "v_prediction":
            raise CheckpointError(f"{path / 'scheduler'} predicts {predicted}, not v; this is another model")
        betas = _read_betas(schedule)
        _read_betas(Fields.read(path / "image_noising_scheduler" / SCHEDULER))
        for part in ("unet", "vae", "text_encoder", "image_normalizer"):
            _check_part(path / part)
        for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
            _check_size(kind, path / part)
        try:
            options = {"local_files_only": True, "torch_dtype": torch.float32}
            unet = UNet2DConditionModel.from_pretrained(path / "unet", **options).eval()
            vae = AutoencoderKL.from_pretrained(path / "vae", **options).eval()
            text = CLIPTextModel.from_pretrained(
                path / "text_encoder", local_files_only=True, dtype=torch.float32
            ).eval()
            tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
            normalizer = StableUnCLIPImageNormalizer.from_pretrained(path / "image_normalizer", **options)
            noising = DDPMScheduler.from_pretrained(path / "image_noising_scheduler", local_files_only=True)
        except UNREADABLE as error:
            raise CheckpointError(
                f"{path}: a part cannot be read ({reason_of(error)}); copy or download it again"
            ) from error
        ids = tokenizer(
            "",
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            empty = text(ids.input_ids)[0].clone()
        return cls(
            path,
            unet,
            vae,
            empty,
            normalizer.mean.detach(),
            normalizer.std.detach(),
            float(noising.alphas_cumprod[0]),
            DDPMScheduler(**betas).alphas_cumprod,
            schedule.integer("steps_offset", 0, MAX_OFFSET, default=0),
            schedule.flag("set_alpha_to_one", default=False),
        )

    @property
    def image_embed_dim(self) -> int:
        """Width of the image embeddings."""
        return int(self.mean.shape[-1])

    def settings(self) -> Diffusion:
        """Return the manifest's diffusion settings, with the reference's steps and guidance."""
        return Diffusion(
            scheduler="pndm",
            steps=REFERENCE_STEPS,
            guidance=REFERENCE_GUIDANCE,
            latent_channels=int(self.unet.config.in_channels),
            latent_size=int(self.unet.config.sample_size),
            steps_offset=self.steps_offset,
            final_alpha_one=self.final_alpha_one,
        )

    @property
    def output_size(self) -> int:
        """Side of a decoded image, in pixels."""
        return int(self.unet.config.sample_size) * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def write(self, folder: Path, storage: str) -> None:
        """Write both graphs and the arrays into `folder`."""
        settings = self.settings()
        channels, size = settings.latent_channels, settings.latent_size
        unet = UnetWithoutText(self.unet, self.empty_text)
        export_graph(unet, unet_graph(channels, size, self.image_embed_dim), folder / UNET, storage)
        export_graph(VaeDecoder(self.vae), vae_graph(channels), folder / VAE, storage)
        np.savez(
            folder / IMAGE_NOISE,
            alphas_cumprod=self.alphas_cumprod.double().numpy(),
            mean=self.mean.float().numpy().reshape(-1),
            std=self.std.float().numpy().reshape(-1),
            noise_alpha=np.float64(self.noise_alpha),
        )


def _read_betas(fields: Fields) -> dict[str, Any]:
    """Return the settings of the noise schedule that the file contains.

    Raises:
        CheckpointError: a value has the wrong type or is outside its range.
    """
    fields.check_magnitudes()
    betas: dict[str, Any] = {}
    for name in ("beta_start", "beta_end"):
        if name in fields.values:
            betas[name] = fields.number(name, 1e-8, 0.999)
    if "num_train_timesteps" in fields.values:
        betas["num_train_timesteps"] = fields.integer("num_train_timesteps", 1, MAX_TIMESTEPS)
    if "beta_schedule" in fields.values:
        fields.check_value("beta_schedule", *BETA_SCHEDULES)
        betas["beta_schedule"] = fields.text("beta_schedule")
    fields.check_value("trained_betas")
    return betas


def _check_size(kind: Any, folder: Path) -> None:
    """Check that the weight file of a part holds as many values as its configuration needs.

    Raises:
        CheckpointError: the file holds fewer, or no model can be built from the configuration.
    """
    try:
        with torch.device("meta"):
            model = kind.from_config(dict(Fields.read(folder / CONFIG).values))
    except UNREADABLE as error:
        raise CheckpointError(
            f"{folder / CONFIG}: nothing can be built from it ({reason_of(error)})"
        ) from error
    file = weight_file(folder)
    needed = sum(parameter.numel() for parameter in model.parameters())
    available = sum(map(prod, shapes_in(file).values()))
    if needed > available:
        raise CheckpointError(
            f"{file} holds {available:,} values, {CONFIG} asks for {needed:,}; copy or download it again"
        )


def _check_part(folder: Path) -> None:
    """Check the configuration of a part against `MAX_CONFIG_VALUES`, before anything is built from it.

    Raises:
        CheckpointError: a value is too large, or the file is missing.
    """
    fields = Fields.read(folder / CONFIG)
    fields.check_magnitudes()
    for name, maximum in MAX_CONFIG_VALUES.items():
        value = fields.values.get(name)
        if isinstance(value, list):
            fields.integers(name, 0, maximum, MAX_BLOCKS)
        elif value is not None:
            fields.integer(name, 0, maximum)
    for weights in folder.glob("*.bin"):
        check_not_inflated(weights)
