# SPDX-License-Identifier: Apache-2.0
"""The U-Nets of OpenAI's consistency models (Song et al. 2023, arXiv 2303.01469) and of the EDM teachers behind them.

They are ADM's network (see adm.py) under other names, with three differences. They see the noise as 250 ln sigma in
place of EDM's ln(sigma) / 4. Every group normalisation has 32 groups, whatever the width (EDM's has min(32, channels //
4), which is the same from 128 channels on). Attention has heads of a given width (their num_head_channels), or a given
number of heads at every resolution (their num_heads).

Their files hold a state and no settings. `settings` derives settings from the shapes. The resolution of the images and
the attention heads change no shape, so they are known only for the published network and must be given for any other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from eldistill.networks import adm
from eldistill.networks.precond import EDMPrecond

RECIPE = ("networks/guided", 2)
NOISE = 1000.0  # their noise label divided by EDM's
GROUPS = 32  # of every group normalisation
TINY = {
    "model_channels": 32,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
    "num_head_channels": 32,
}
# The published network of ImageNet at 64 pixels: settings that follow from shapes, and those that do not.
PUBLISHED = {
    "img_channels": 3, "label_dim": 1000, "model_channels": 192, "channel_mult": [1, 2, 3, 4], "channel_mult_emb": 4,
    "num_blocks": 3,
}  # fmt: skip
PUBLISHED_LEVELS = [1, 2, 3]  # levels with attention; 0 is the highest resolution
PUBLISHED_GIVEN = {"img_resolution": 64, "num_head_channels": 64}
BLOCK = {
    "norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1", "norm1": "out_layers.0",
    "conv1": "out_layers.3", "skip": "skip_connection",
}  # fmt: skip
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}


@dataclass(frozen=True, kw_only=True)
class Settings(adm.Settings):
    """Settings of ADM, with the range of noise levels that these networks were trained on.

    Raises ValueError for widths that are not multiples of 32, or if not exactly one of the last two is given.
    """

    sigma_min: float = 0.002
    sigma_max: float | None = 80.0
    num_head_channels: int | None = 64  # channels of an attention head; None: num_heads is used
    num_heads: int | None = None  # heads at every resolution; None: num_head_channels is used

    def __post_init__(self):
        super().__post_init__()
        widths = [self.model_channels * factor for factor in self.channel_mult]
        if odd := [width for width in widths if width % GROUPS]:
            raise ValueError(f"{odd[0]} channels cannot be split into {GROUPS} equal groups of a normalisation.")
        given = [each for each in (self.num_head_channels, self.num_heads) if each is not None]
        if len(given) != 1 or given[0] < 1:
            raise ValueError("exactly one of num_head_channels and num_heads must be given, above 0.")


class GroupNorm(nn.GroupNorm):
    """Normalisation over 32 groups of channels.

    Raises ValueError where the channels do not divide evenly among them.
    """

    def __init__(self, channels: int, eps: float):
        super().__init__(GROUPS, channels, eps=eps)


class Block(adm.Block):
    """ADM's block with the normalisation and the heads of these networks."""

    normalisation = GroupNorm

    @classmethod
    def count_heads(cls, s: Settings, channels: int) -> int:
        """The number of attention heads for `channels` channels. Raises ValueError if they cannot have equal widths."""
        heads = s.num_heads or channels // s.num_head_channels
        if not heads or channels % heads or (s.num_head_channels and channels % s.num_head_channels):
            each = f"of {s.num_head_channels} channels" if s.num_head_channels else f"in number {s.num_heads}"
            raise ValueError(f"{channels} channels cannot be split into equal heads {each}.")
        return heads


class Guided(adm.DhariwalUNet):
    """ADM's network with the noise label of these networks."""

    block = Block

    def _embed(self, c_noise, labels, augment_labels) -> torch.Tensor:
        return super()._embed(NOISE * c_noise, labels, augment_labels)


def network(**settings) -> EDMPrecond:
    """The denoiser with EDM's preconditioning; keywords and errors are those of `Settings`. `boundary` makes it a
    consistency model."""
    s = Settings(**settings)
    return EDMPrecond(Guided(s), sigma_data=s.sigma_data, sigma_min=s.sigma_min, sigma_max=s.sigma_max)


# --- their files --------------------------------------------------------------------------------------


def settings(theirs: dict[str, torch.Tensor], given: dict | None = None) -> dict:
    """The fields of `Settings` of a network by its state.

    given: settings that do not follow from shapes: `img_resolution` in pixels, and `num_head_channels` or `num_heads`;
    None: the state is that of the published network. Raises ValueError, one sentence, if the tensors are not those of
    such a network, or if it is not the published one and nothing is given.
    """
    try:
        found, attend = _shapes(theirs)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"its tensors are not those of a U-Net of guided-diffusion (at {error})") from None
    given = {key: value for key, value in (given or {}).items() if value is not None}
    if not given and (found, attend) == (PUBLISHED, PUBLISHED_LEVELS):
        given = PUBLISHED_GIVEN
    heads = given.keys() & {"num_head_channels", "num_heads"}
    if "img_resolution" not in given or len(heads) != 1:
        raise ValueError(
            "the resolution and the attention heads of a network other than the published one do not follow from its file; set "
            "teacher.NAME.state to {img_resolution: …, num_head_channels: …}, or {img_resolution: …, num_heads: …}, as in its training"
        )
    side = given["img_resolution"]
    found |= {"attn_resolutions": [side >> level for level in attend]}
    return found | {"num_head_channels": None, "num_heads": None} | given


def _shapes(theirs: dict[str, torch.Tensor]) -> tuple[dict, list[int]]:
    """Fields of `Settings` that follow from shapes, and the levels with attention; 0 is the highest resolution."""
    width, channels = theirs["input_blocks.0.0.weight"].shape[:2]
    outputs = {int(name.split(".")[1]) for name in theirs if name.startswith("output_blocks.")}
    ups = {name.split(".")[1] for name in theirs if re.match(r"output_blocks\.\d+\.[12]\.in_layers\.2\.weight", name)}
    levels = len(ups) + 1
    each = len(outputs) // levels  # blocks of a level of the decoder: one more than in the encoder
    firsts = [1 + level * each for level in range(levels)]
    wide = [theirs[f"input_blocks.{first}.0.in_layers.2.weight"].shape[0] for first in firsts]
    embedding = theirs["time_embed.0.weight"].shape[0]
    if odd := [size for size in (*wide, embedding) if size % width]:
        raise ValueError(f"a width of {odd[0]}, no multiple of {width}")
    label = theirs.get("label_emb.weight")
    found = {
        "img_channels": channels, "label_dim": 0 if label is None else label.shape[0], "model_channels": width,
        "channel_mult": [size // width for size in wide], "channel_mult_emb": embedding // width, "num_blocks": each - 1,
    }  # fmt: skip
    return found, [level for level, first in enumerate(firsts) if f"input_blocks.{first}.1.qkv.weight" in theirs]


def renamed(theirs: dict[str, torch.Tensor], s: Settings) -> dict[str, torch.Tensor]:
    """The tensors under the names that `network` uses. Raises ValueError for a missing or an unused tensor."""
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
            heads = Block.count_heads(s, place.out_channels)
            for part in ("weight", "bias"):  # their order is [q, k, v][head][channel of the head]
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
