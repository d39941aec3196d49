# SPDX-License-Identifier: Apache-2.0
"""The U-Nets of OpenAI's consistency models (Song et al. 2023, arXiv 2303.01469) and of the EDM teachers behind them.

They are ADM's network (see adm.py) under other names, told of the noise by 250 ln sigma in place of EDM's ln(sigma) / 4.
Their files hold a state and no settings: `settings` finds those in the shapes, `renamed` gives the tensors our names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from eldistill.networks import adm, layers
from eldistill.networks.precond import EDMPrecond

VERSION = 1
NOISE = 1000.0  # their label of the noise over EDM's
COARSEST = 8  # pixels a side of the last level that attends, in all their networks: what tells the resolution
BLOCK = {
    "norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1", "norm1": "out_layers.0",
    "conv1": "out_layers.3", "skip": "skip_connection",
}  # fmt: skip
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}


@dataclass(frozen=True, kw_only=True)
class Settings(adm.Settings):
    """As ADM's; the limits are those that these networks were trained between."""

    sigma_min: float = 0.002
    sigma_max: float | None = 80.0


class Guided(adm.DhariwalUNet):
    """ADM's network with another label of the noise."""

    def _embed(self, c_noise, labels, augment_labels) -> torch.Tensor:
        return super()._embed(NOISE * c_noise, labels, augment_labels)


def network(**settings) -> EDMPrecond:
    """The denoiser with EDM's preconditioning; keywords and errors are those of `Settings`. `boundary` makes it a
    consistency model."""
    s = Settings(**settings)
    return EDMPrecond(Guided(s), sigma_data=s.sigma_data, sigma_min=s.sigma_min, sigma_max=s.sigma_max)


# --- their files --------------------------------------------------------------------------------------


def settings(theirs: dict[str, torch.Tensor]) -> dict:
    """The fields of `Settings` that a state of theirs was made with. Raises ValueError if its tensors do not say."""
    try:
        width, channels = theirs["input_blocks.0.0.weight"].shape[:2]
        outputs = {int(name.split(".")[1]) for name in theirs if name.startswith("output_blocks.")}
        ups = {
            name.split(".")[1] for name in theirs if re.match(r"output_blocks\.\d+\.[12]\.in_layers\.2\.weight", name)
        }
        levels = len(ups) + 1
        each = len(outputs) // levels  # blocks of a level of the decoder: one more than in the encoder
        firsts = [1 + level * each for level in range(levels)]
        wide = [theirs[f"input_blocks.{first}.0.in_layers.2.weight"].shape[0] for first in firsts]
        attend = [level for level, first in enumerate(firsts) if f"input_blocks.{first}.1.qkv.weight" in theirs]
        side = COARSEST << max(attend)
        embedding = theirs["time_embed.0.weight"].shape[0]
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"its tensors are not those of a U-Net of guided-diffusion (at {error})") from None
    label = theirs.get("label_emb.weight")
    return {
        "img_resolution": side, "img_channels": channels, "label_dim": 0 if label is None else label.shape[0],
        "model_channels": width, "channel_mult": [each // width for each in wide], "channel_mult_emb": embedding // width,
        "num_blocks": each - 1, "attn_resolutions": [side >> level for level in attend],
    }  # fmt: skip


def renamed(theirs: dict[str, torch.Tensor], s: Settings) -> dict[str, torch.Tensor]:
    """The same tensors as the state of `network`. Raises ValueError for one that lacks, or is left over."""
    left = dict(theirs)

    def take(name: str) -> torch.Tensor:
        if name not in left:
            raise ValueError(f"it has no {name}")
        return left.pop(name)

    ours: dict[str, torch.Tensor] = {}

    def move(here: str, there: str) -> None:
        for part in ("weight", "bias"):
            ours[f"model.{here}.{part}"] = take(f"{there}.{part}")

    def block(place: adm.Place, here: str, there: str, attention: str) -> None:
        for name, other in BLOCK.items():
            if name != "skip" or place.in_channels != place.out_channels:
                move(f"{here}.{name}", f"{there}.{other}")
        for name in ("conv0", "skip") if place.up or place.down else ():
            ours[f"model.{here}.{name}.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)  # the mean of 2x2 pixels
        if place.attends:
            for name, other in ATTENTION.items():
                move(f"{here}.{name}", f"{attention}.{other}")
            heads = layers.heads(place.out_channels, adm.Block.head_channels)
            for part in ("weight", "bias"):  # theirs lie as [q, k, v][head][channel of the head]
                qkv = ours[f"model.{here}.qkv.{part}"]
                parts = qkv.reshape(3, heads, -1, *qkv.shape[1:])
                ours[f"model.{here}.qkv.{part}"] = parts.permute(1, 2, 0, *range(3, parts.ndim)).reshape(qkv.shape)

    encoder, decoder = adm.plan(s)
    move("map_layer0", "time_embed.0"), move("map_layer1", "time_embed.2")
    if s.label_dim:
        ours["model.map_label.weight"] = take("label_emb.weight").T
    move(f"enc.{encoder[0].name}", "input_blocks.0.0")
    for index, place in enumerate(encoder[1:], start=1):
        block(place, f"enc.{place.name}", f"input_blocks.{index}.0", f"input_blocks.{index}.1")
    at = -1
    for place in decoder:
        here = f"dec.{place.name}"
        if place.name.endswith("_in0"):
            block(place, here, "middle_block.0", "middle_block.1")
        elif place.name.endswith("_in1"):
            block(place, here, "middle_block.2", "")
        elif place.up:  # in the same sequence as the block before it
            last = 2 if f"output_blocks.{at}.2.in_layers.2.weight" in left else 1
            block(place, here, f"output_blocks.{at}.{last}", "")
        else:
            at += 1
            block(place, here, f"output_blocks.{at}.0", f"output_blocks.{at}.1")
    move("out_norm", "out.0"), move("out_conv", "out.2")
    if left:
        raise ValueError(f"{len(left)} of its tensors are left over, such as {ascii(next(iter(left)))[:80]}")
    return ours
