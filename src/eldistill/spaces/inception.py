# SPDX-License-Identifier: Apache-2.0
"""Inception-v3 of December 2015 with 2048 pooled features, the feature space of published FIDs (Heusel et al. 2017,
arXiv 1706.08500).

The network is defined here. Its weights come from the file that EDM's evaluation uses, a row of data/sources.csv, whose code is not
executed. Images are resized like in TensorFlow 1; inception_clean.py resizes them like clean-fid.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from eldistill.errors import Problem
from eldistill.evaluate.arithmetic import softmax
from eldistill.evaluate.features import ClassifierSpace, Space
from eldistill.external import fetching, pickles, weights

RECIPE = ("spaces/inception", 1)
NAMES = ("inception",)
DOWNLOADS = ("inception-2015-12-05-pkl",)  # rows of data/sources.csv that it reads
SIDE = 299


class Conv(nn.Module):
    """Convolution without bias, batch norm with fixed moments and without scale, then ReLU."""

    def __init__(self, channels: int, out: int, kernel: int | tuple[int, int], stride: int = 1, padding=0):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.stride, self.padding = stride, padding
        self.weight = nn.Parameter(torch.empty(out, channels, height, width))
        for name in ("beta", "mean", "var"):
            self.register_parameter(name, nn.Parameter(torch.empty(out)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        return F.batch_norm(x, self.mean, self.var, bias=self.beta, eps=1e-3).relu()


def _tower(channels: int, *convs: tuple) -> nn.Sequential:
    # convs: (out, kernel, stride, padding), named conv, conv_1, conv_2, …
    tower = nn.Sequential()
    for i, (out, *rest) in enumerate(convs):
        tower.add_module("conv" if i == 0 else f"conv_{i}", Conv(channels, out, *rest))
        channels = out
    return tower


def _pooled(channels: int, out: int) -> nn.Sequential:
    tower = nn.Sequential()
    tower.add_module("pool", nn.AvgPool2d(3, 1, 1, count_include_pad=False))
    tower.add_module("conv", Conv(channels, out, 1))
    return tower


class Mixed(nn.Module):
    """Concatenates the outputs of its children along the channels."""

    def __init__(self, **branches: nn.Module):
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


ROW, COLUMN = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))  # kernel, stride, padding


def _a(channels: int, pooled: int) -> Mixed:
    return Mixed(conv=Conv(channels, 64, 1), tower=_tower(channels, (48, 1), (64, 5, 1, 2)),
                 tower_1=_tower(channels, (64, 1), (96, 3, 1, 1), (96, 3, 1, 1)), tower_2=_pooled(channels, pooled))  # fmt: skip


def _b(channels: int) -> Mixed:
    return Mixed(conv=Conv(channels, 384, 3, 2), tower=_tower(channels, (64, 1), (96, 3, 1, 1), (96, 3, 2)),
                 pool=nn.MaxPool2d(3, 2))  # fmt: skip


def _c(channels: int, t: int) -> Mixed:
    return Mixed(
        conv=Conv(channels, 192, 1),
        tower=_tower(channels, (t, 1), (t, *ROW), (192, *COLUMN)),
        tower_1=_tower(channels, (t, 1), (t, *COLUMN), (t, *ROW), (t, *COLUMN), (192, *ROW)),
        tower_2=_pooled(channels, 192),
    )


def _d(channels: int) -> Mixed:
    return Mixed(tower=_tower(channels, (192, 1), (320, 3, 2)),
                 tower_1=_tower(channels, (192, 1), (192, *ROW), (192, *COLUMN), (192, 3, 2)), pool=nn.MaxPool2d(3, 2))  # fmt: skip


class MixedE(nn.Module):
    """The widest block. Two of its towers end in a 1x3 and a 3x1 convolution whose outputs are concatenated. pool: the pooling layer
    before the last convolution."""

    def __init__(self, channels: int, pool: nn.Module):
        super().__init__()
        row, column = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        self.conv = Conv(channels, 320, 1)
        self.tower_conv = Conv(channels, 384, 1)
        self.tower_mixed_conv, self.tower_mixed_conv_1 = Conv(384, 384, *row), Conv(384, 384, *column)
        self.tower_1_conv, self.tower_1_conv_1 = Conv(channels, 448, 1), Conv(448, 384, 3, 1, 1)
        self.tower_1_mixed_conv, self.tower_1_mixed_conv_1 = Conv(384, 384, *row), Conv(384, 384, *column)
        self.tower_2_pool, self.tower_2_conv = pool, Conv(channels, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.tower_conv(x), self.tower_1_conv_1(self.tower_1_conv(x))
        ends = (self.conv(x), self.tower_mixed_conv(first), self.tower_mixed_conv_1(first), self.tower_1_mixed_conv(second),
                self.tower_1_mixed_conv_1(second), self.tower_2_conv(self.tower_2_pool(x)))  # fmt: skip
        return torch.cat(ends, 1)


class Inception(nn.Module):
    """Maps uint8 images [n, 3, h, w] to features [n, 2048]. `pooled` does so for images that are already resized, and `output` is the
    last layer, whose logits the Inception score uses."""

    def __init__(self):
        super().__init__()
        average = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        parts = {
            "conv": Conv(3, 32, 3, 2), "conv_1": Conv(32, 32, 3), "conv_2": Conv(32, 64, 3, 1, 1), "pool0": nn.MaxPool2d(3, 2),
            "conv_3": Conv(64, 80, 1), "conv_4": Conv(80, 192, 3), "pool1": nn.MaxPool2d(3, 2),
            "mixed": _a(192, 32), "mixed_1": _a(256, 64), "mixed_2": _a(288, 64), "mixed_3": _b(288), "mixed_4": _c(768, 128),
            "mixed_5": _c(768, 160), "mixed_6": _c(768, 160), "mixed_7": _c(768, 192), "mixed_8": _d(768),
            "mixed_9": MixedE(1280, average), "mixed_10": MixedE(2048, nn.MaxPool2d(3, 1, 1)), "pool2": nn.AvgPool2d(8),
        }  # fmt: skip
        self.layers = nn.Sequential()
        for name, part in parts.items():
            self.layers.add_module(name, part)
        self.output = nn.Linear(2048, 1008)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.pooled(resize(images.to(self.output.weight.dtype)))

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """Features [n, 2048] of images [n, 3, SIDE, SIDE] with values from 0 to 255, which need not be whole numbers."""
        return self.layers((x - 128) / 128).flatten(1)


def resize(x: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """Resize x [n, c, h, w] to [n, c, side, side] with TensorFlow 1's bilinear filter: output pixel i is read at position
    i h / side, without a shift by half a pixel and without antialiasing, clamped at the last pixel."""
    for axis in (2, 3):
        size = x.shape[axis]
        place = torch.arange(side, dtype=x.dtype, device=x.device) * (size / side)
        low = place.floor().long().clamp(max=size - 1)
        shape = [-1 if i == axis else 1 for i in range(4)]
        share = (place - low).reshape(shape)
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, (low + 1).clamp(max=size - 1)) * share
    return x


def _numbers(tensor: pickles.Tensor) -> bool:
    return tensor.storage.dtype in weights.FLOATS and weights.is_finite(tensor.view())


def load_network(path: Path, device="cpu", sha256: str | None = None) -> Inception:
    """Load Inception from NVIDIA's pickle at `path`, frozen and in float32. Raises Refused for any other file."""
    with torch.device("meta"):
        net = Inception()
    wanted = net.state_dict()
    with pickles.read_network_file(path, sha256) as file:
        found = file.network()
        odd = sorted(wanted.keys() ^ found.tensors.keys())
        odd += [name for name, each in wanted.items() if not odd and tuple(each.shape) != found.tensors[name].size]
        odd += [name for name in wanted if not odd and not _numbers(found.tensors[name])]
        if odd:
            raise pickles.Refused(
                f"{path} is not the Inception network of December 2015: {ascii(odd[0])[:80]} and {len(odd) - 1} more tensors "
                "differ; fetch it again"
            )
        state = {name: found.tensors[name].value().float() for name in wanted}
    net.load_state_dict(state, assign=True)
    return net.requires_grad_(False).eval().to(device)


def load_space(name: str, device="cpu", path: Path | None = None) -> Space:
    """Load the function from uint8 images [n, c, h, w] to features [n, 2048]. path: the pickle; None downloads it.

    Raises Problem if the file is not available. The function raises Problem unless images have 1 channel, which is repeated, or 3."""
    path = path or fetching.fetch(DOWNLOADS[0])
    net = load_network(path, device)

    def features(images: torch.Tensor) -> torch.Tensor:
        return net(to_rgb(images, name).to(device))

    return ClassifierSpace(features, probability_head(net))


def to_rgb(images: torch.Tensor, name: str) -> torch.Tensor:
    """Images [n, 1 or 3, h, w] as [n, 3, h, w]; grey images are repeated. name: of the feature space, for the message. Raises
    Problem for another number of channels."""
    if images.shape[1] not in (1, 3):
        raise Problem(
            f"images of {images.shape[1]} channels for {name}; expected 1 or 3: remove it from evaluate.features"
        )
    return images.expand(-1, 3, -1, -1)


def probability_head(net: Inception) -> Callable:
    """The function from features [n, 2048] to the probabilities [n, 1008] of Inception's classes, without the bias of the last layer,
    as in NVIDIA's code."""
    weight = net.output.weight.cpu().numpy()
    return lambda found: softmax(found, weight)
