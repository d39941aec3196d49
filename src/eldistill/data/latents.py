# SPDX-License-Identifier: Apache-2.0
"""Latents of an autoencoder, which replace pixels as in EDM2 (Karras et al. 2024, arXiv 2312.02696).

A pack holds the encoder's output for an image: means and standard deviations of its latents, float32 [2c, r, r]. Networks see

    x = (mean + deviation n) scale + bias,    scale = 0.5 / std,    bias = -mean scale,    n ~ N(0, 1)

with n fresh each time that an image is shown; `mean` and `std` of the codec are those of each channel of the raw latents.
The autoencoder sees pixels in [0, 1], in float32. It is that of Stable Diffusion with the decoder fine-tuned on the mean
square error (sd-vae-ft-mse), or, with `vae` in the codec, one in a folder as diffusers saves it.
"""

from __future__ import annotations

import functools
import inspect
import re

import torch

from eldistill import files
from eldistill.diffusion.noise import SIGMA_DATA
from eldistill.errors import NonFinite, Problem
from eldistill.external import fetching, listing, sources, weights
from eldistill.outside import check_file, locate
from eldistill.tensors import load_tensors

RECIPE = ("latents", 1)
CHUNK = 4  # images that are decoded at once: at 512 pixels each takes a gigabyte or two
# The architecture of sd-vae-ft-mse: 8 times fewer pixels a side, 4 channels.
CONFIG = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2, "act_fn": "silu", "norm_num_groups": 32, "sample_size": 256,
}  # fmt: skip
EDM2 = {"mean": [5.81, 3.25, 0.12, -2.15], "std": [4.17, 4.62, 3.71, 3.28]}  # its codec, by channel of the raw latents
# Attention had other names when that file was written.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# --- codec --------------------------------------------------------------------------------------------


def is_latent(codec: dict) -> bool:
    """Whether a codec is for latents: its mean and std are lists with one number for each channel."""
    return isinstance(codec["mean"], list | tuple)


def codec_constants(codec: dict, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, bias) of a codec of latents, each float32 [c, 1, 1], computed in float32 as in EDM2."""
    return _constants(tuple(codec["mean"]), tuple(codec["std"]), torch.device(device))


@functools.cache  # sent to a device once: a GPU would be waited for
def _constants(mean: tuple, std: tuple, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(each, dtype=torch.float32).reshape(-1, 1, 1) for each in (mean, std))
    scale = SIGMA_DATA / std
    return scale.to(device), (0 - mean * scale).to(device)


def encode(stored: torch.Tensor, noise: torch.Tensor, codec: dict) -> torch.Tensor:
    """Encoded latents x [n, c, r, r], of the dtype of the noise.

    stored: means and standard deviations [n, 2c, r, r]. noise: N(0, 1) [n, c, r, r]."""
    mean, deviation = stored.to(noise).chunk(2, dim=1)
    scale, bias = codec_constants(codec, noise.device)
    return (mean + deviation * noise) * scale.to(noise) + bias.to(noise)


@torch.no_grad()
def decode(x: torch.Tensor, codec: dict) -> torch.Tensor:
    """uint8 images [n, 3, h, w] of x [n, c, r, r]: pixels clipped to [0, 1], times 255, truncated (as EDM2 does).

    Raises Problem if there is no autoencoder, NonFinite if an image is not finite.
    """
    scale, bias = codec_constants(codec, x.device)
    vae = load_autoencoder(codec.get("vae"), str(x.device))
    parts = []
    for part in ((x.float() - bias) / scale).split(CHUNK):
        pixels = vae.decode(part).sample
        if not bool(pixels.isfinite().all()):
            raise NonFinite(f"a decoded image is not finite, shape {tuple(pixels.shape)}; the latents are out of range")
        parts.append((pixels.clamp(0, 1) * 255).to(torch.uint8))
    return torch.cat(parts)


@torch.no_grad()
def encode_moments(image: torch.Tensor, vae: str | None = None, device: str = "cpu") -> torch.Tensor:
    """Means and standard deviations, float32 [2c, r, r], of the latents of one image, uint8 [3, h, w].

    Images are encoded one by one, because the batch size can change bits. vae: a folder, as in `load_autoencoder`.
    """
    found = load_autoencoder(vae, device).encode(image[None].to(device).float() / 255).latent_dist
    return torch.cat([found.mean, found.std], dim=1)[0].cpu()


# --- the autoencoder ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def load_autoencoder(folder: str | None = None, device: str = "cpu") -> torch.nn.Module:
    """The frozen autoencoder (AutoencoderKL of diffusers, float32) of a folder, or sd-vae-ft-mse, which is fetched, for None.

    folder: contains config.json and the weights as safetensors. Nothing in the files is executed. Raises Problem."""
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise Problem(
            "latents need the package diffusers, which is not installed; type: pip install '.[latent]'"
        ) from None
    described, path = (
        (None, fetching.fetch(sources.AUTOENCODER)) if folder is None else listing.autoencoder_files(locate(folder))
    )
    config = CONFIG if described is None else files.read_json(check_file(described, "its config.json", text=True))
    tensors, _ = load_tensors(path, foreign=True)
    try:
        if (name := config.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
            raise ValueError(f"its config.json describes a {ascii(name)[:60]}")
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        if not weights.is_bounded(config, len(tensors)):
            raise ValueError(
                "its config.json has more layers than the file has tensors, or numbers beyond those of networks"
            )
        if odd := sorted(config.keys() - inspect.signature(AutoencoderKL.__init__).parameters.keys()):
            raise ValueError(f"its config.json has {ascii(odd[0])[:60]}, which no AutoencoderKL has")
        with torch.device("meta"):  # nothing is drawn
            vae = AutoencoderKL.from_config(config)
        wanted = vae.state_dict()
        found = {name: each.reshape(wanted[name].shape) for name, each in rename_tensors(tensors).items()}
        if (wrong := weights.find_fault(found, wanted)) is not None:
            raise ValueError(f"it {wrong}")
        vae.load_state_dict(found, assign=True)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        text = " ".join(str(error).split())[:200]
        raise Problem(f"{path} is no AutoencoderKL of the expected architecture ({text}); give another one") from None
    return vae.requires_grad_(False).eval().float().to(device)


def rename_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of an old file under the names that diffusers uses today."""
    pattern = re.compile(r"(?<=\.attentions\.)(\d+)\.(" + "|".join(OLD_NAMES) + r")\.")
    return {
        pattern.sub(lambda found: f"{found[1]}.{OLD_NAMES[found[2]]}.", name): each for name, each in tensors.items()
    }
