# SPDX-License-Identifier: Apache-2.0
"""The U-Nets of diffusers (UNet2DModel) that were trained as DDPM (Ho et al. 2020, arXiv 2006.11239) on pixels in [-1,
1], as denoisers in sigma notation.

Such a network sees x_t = a x_0 + s n with a^2 = abar_t, s^2 = 1 - abar_t. Divided by a that is x = x_0 + sigma n with
sigma_t = s / a, so a = 1 / sqrt(1 + sigma^2) and s = sigma a (Karras et al. 2022, arXiv 2206.00364, table 1, column
VP). Between two steps t is interpolated in ln sigma, as the embedding of t takes fractions; beyond the ends of the
schedule t stays at the end. From epsilon = n the image is D = x - sigma epsilon; from v = a n - s x_0 (Salimans & Ho
2022, arXiv 2202.00512, appendix D) it is D = a x_t - s v = a^2 x - s v.

Its F in EDM's preconditioning is what gives that D (with u = c_in x, d = sigma_data = 0.5 and w = sqrt(sigma^2 + d^2)):

    F = (sigma u - w epsilon) / d,    or    F = (a^2 sigma (1 - d^2) u - a w v) / d

so that everything which is written for EDM's networks holds, the boundary of consistency models too. The second does
not pass through epsilon: D = x - sigma epsilon is a difference of two numbers of the size of sigma, and at the largest
sigma (157 of the linear schedule, 2e4 of the cosine one) it would lose digits that v has.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from eldistill.diffusion.noise import SIGMA_DATA
from eldistill.errors import Problem
from eldistill.networks.precond import EDMPrecond

RECIPE = ("networks/ddpm", 2)
TINY = {"block_out_channels": [4], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "layers_per_block": 1,
        "norm_num_groups": 2, "attention_head_dim": 2}  # fmt: skip
DOWN = ("DownBlock2D", "AttnDownBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keywords of UNet2DModel and of its noise schedule, under their names there."""

    img_resolution: int  # sample_size
    img_channels: int  # in_channels and out_channels
    label_dim: int = 0  # num_class_embeds; 0: none
    block_out_channels: Sequence[int] = (224, 448, 672, 896)
    down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    up_block_types: Sequence[str] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    time_embedding_dim: int | None = None
    num_train_timesteps: int = 1000
    beta_schedule: str = "linear"  # or scaled_linear, squaredcos_cap_v2
    beta_start: float = 1e-4
    beta_end: float = 0.02
    trained_betas: Sequence[float] | None = None  # in place of the three
    prediction_type: str = "epsilon"  # or v_prediction

    def __post_init__(self):
        n = len(self.block_out_channels)
        if not n == len(self.down_block_types) == len(self.up_block_types) or self.img_resolution % 2 ** (n - 1):
            raise ValueError(
                f"{n} widths need {n} blocks down and {n} blocks up, and an img_resolution that is a multiple of {2 ** (n - 1)}"
            )
        for name, known in (("down_block_types", DOWN), ("up_block_types", UP)):
            if odd := [each for each in getattr(self, name) if each not in known]:
                raise ValueError(f"{name} has {odd[0]!r}; expected {' or '.join(known)}")
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ValueError(f"widths {list(self.block_out_channels)} are not multiples of norm_num_groups")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type is {self.prediction_type!r}; expected epsilon or v_prediction")
        levels = sigmas(self)
        if not (levels.isfinite().all() and (levels > 0).all() and (levels.diff() > 0).all()):
            raise ValueError("the noise schedule has steps that add no noise, or ends in noise alone")


def sigmas(s: Settings) -> torch.Tensor:
    """sigma of every step of the schedule, ascending, float64 [steps]."""
    with torch.device("cpu"):
        steps = s.num_train_timesteps
        if s.trained_betas is not None:
            betas = torch.tensor(s.trained_betas, dtype=torch.float64)
        elif s.beta_schedule == "linear":
            betas = torch.linspace(s.beta_start, s.beta_end, steps, dtype=torch.float64)
        elif s.beta_schedule == "scaled_linear":
            betas = torch.linspace(s.beta_start**0.5, s.beta_end**0.5, steps, dtype=torch.float64) ** 2
        elif s.beta_schedule == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, equation 17
            angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * (math.pi / 2)
            left = angle.cos() ** 2
            betas = (1 - left[1:] / left[:-1]).clamp(max=0.999)
        else:
            raise ValueError(
                f"beta_schedule is {s.beta_schedule!r}; expected linear, scaled_linear or squaredcos_cap_v2"
            )
        left = (1 - betas).cumprod(0)
        return ((1 - left) / left).sqrt()


def network(**settings) -> EDMPrecond:
    """The denoiser; keywords and errors are those of `Settings`. Raises Problem if diffusers is not installed."""
    s = Settings(**settings)
    levels = sigmas(s)
    return EDMPrecond(DDPM(s, levels), sigma_data=SIGMA_DATA, sigma_min=float(levels[0]), sigma_max=float(levels[-1]))


def _unet(s: Settings) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from diffusers import UNet2DModel
    except ImportError as error:
        raise Problem(
            f"a network of diffusers needs the package {error.name}; run `pip install .[latent]` in this environment"
        ) from None
    own = ("img_resolution", "img_channels", "label_dim", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end",
           "trained_betas", "prediction_type")  # fmt: skip
    keywords = {key: value for key, value in vars(s).items() if key not in own}
    keywords |= {"sample_size": s.img_resolution, "in_channels": s.img_channels, "out_channels": s.img_channels}
    keywords |= {"num_class_embeds": s.label_dim or None}
    with torch.device("meta"):  # weights are drawn or loaded by us, never from the global generator
        return UNet2DModel(**keywords, dropout=0.0)


class DDPM(nn.Module):
    """F(u, c_noise): u [n, c, r, r] of about unit variance, c_noise = ln(sigma) / 4 -> [n, c, r, r]."""

    sigma_data = SIGMA_DATA

    def __init__(self, settings: Settings, levels: torch.Tensor):
        super().__init__()
        s = settings
        self.img_resolution, self.img_channels = s.img_resolution, s.img_channels
        self.label_dim, self.augment_dim = s.label_dim, 0
        side = s.img_resolution >> len(s.block_out_channels) - 1
        self.features_shape = (s.block_out_channels[-1], side, side)
        self.velocity = s.prediction_type == "v_prediction"
        self.unet = _unet(s)
        self.register_buffer("levels", levels.log(), persistent=False)

    def draw(self, generator: torch.Generator) -> None:
        """Weights of every layer: U(-b, b) with b = 1 / sqrt(fan in), norms 1, biases 0."""
        self.unet.to_empty(device="cpu")
        for module in self.unet.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if name == "weight" and parameter.ndim > 1:
                    bound = parameter[0].numel() ** -0.5
                    drawn = torch.rand(parameter.shape, generator=generator, device="cpu", dtype=torch.float32)
                    parameter.data.copy_((2 * drawn - 1) * bound)
                else:
                    parameter.data.fill_(float(name == "weight"))

    def forward(self, x, c_noise, labels=None, augment_labels=None) -> torch.Tensor:
        return self.decode(*self.encode(x, c_noise, labels, augment_labels))

    def encode(self, x, c_noise, labels=None, augment_labels=None) -> tuple:
        """Features [n, *features_shape] at the lowest resolution, the skips, and what else `decode` needs."""
        sigma = (4 * c_noise).exp()
        whole = (sigma**2 + self.sigma_data**2).sqrt()
        scaled = x * (whole / (1 + sigma**2).sqrt()).reshape(-1, 1, 1, 1)  # x_t
        step = self.step(sigma).expand(len(x))
        # In half precision what layers see is rounded; x and sigma are not, as F is a difference of two large numbers.
        narrow = self.unet.conv_in.weight.dtype
        embedding = self.unet.time_embedding(self.unet.time_proj(step).to(x.dtype).to(narrow))
        if self.label_dim and labels is not None:  # a row of the class embedding for each one-hot label
            embedding = embedding + labels.to(narrow) @ self.unet.class_embedding.weight
        h = self.unet.conv_in(scaled.to(narrow))
        skips = (h,)
        for block in self.unet.down_blocks:
            h, more = block(hidden_states=h, temb=embedding)
            skips += more
        return h, skips, (embedding, x, sigma.reshape(-1, 1, 1, 1))

    def decode(self, features: torch.Tensor, skips: tuple, rest: tuple) -> torch.Tensor:
        """F(u, c_noise) [n, c, r, r] from what `encode` returned."""
        embedding, x, sigma = rest
        whole = (sigma**2 + self.sigma_data**2).sqrt()
        h = self.unet.mid_block(features, embedding)
        for block in self.unet.up_blocks:
            n = len(block.resnets)
            h, skips = block(h, skips[-n:], embedding), skips[:-n]
        out = self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(h)))
        if self.velocity:
            a = (1 + sigma**2).rsqrt()
            return (a**2 * sigma * (1 - self.sigma_data**2) * x - a * whole * out) / self.sigma_data
        return (sigma * x - whole * out) / self.sigma_data

    def step(self, sigma: torch.Tensor) -> torch.Tensor:
        """The fractional step of the schedule [n] for sigma [n], clamped to the first and last step."""
        levels, place = self.levels.to(sigma.dtype), sigma.log()
        above = torch.bucketize(place, levels).clamp(1, len(levels) - 1)
        low, high = levels[above - 1], levels[above]
        return above - 1 + ((place - low) / (high - low)).clamp(0, 1)
