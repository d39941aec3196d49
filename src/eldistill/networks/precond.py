# SPDX-License-Identifier: Apache-2.0
"""EDM preconditioning, which turns a network F into a denoiser D (Karras et al. 2022, arXiv 2206.00364, section 5)."""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager

import torch
from torch import nn

from eldistill.diffusion import noise
from eldistill.networks import half

RECIPE = ("networks/precond", 1)


class EDMPrecond(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (EDM, eq. 7 and table 1).

    model: F(x, c_noise [n or 1], labels, augment_labels) = decode(*encode(...)), with `img_resolution`, `img_channels`,
    `label_dim`, `augment_dim` and `features_shape`. sigma_data: standard deviation of the images. sigma_min, sigma_max:
    limits that a sampler respects; None means no upper limit. boundary: the sigma at which D(x) = x: 0 in EDM; set the
    attribute to make D a consistency model. precision: of what F computes: float32, or bfloat16 with float32 weights
    (networks/half.py); all else stays as it is.
    """

    inner = "model"  # name of F in the state

    def __init__(
        self,
        model: nn.Module,
        sigma_data: float = noise.SIGMA_DATA,
        sigma_min: float = 0.0,
        sigma_max: float | None = None,
    ):
        super().__init__()
        self.add_module(self.inner, model)
        self.sigma_data = sigma_data
        self.sigma_min = sigma_min
        self.sigma_max = math.inf if sigma_max is None else sigma_max
        self.boundary = 0.0
        self.precision = torch.float32
        self.copies = half.Copies()
        self._compiled: dict = {}  # {function that `_run` calls: its compiled version}
        self.img_resolution: int = model.img_resolution
        self.img_channels: int = model.img_channels
        self.label_dim: int = model.label_dim
        self.augment_dim: int = model.augment_dim

    @property
    def dtype(self) -> torch.dtype:
        """float64 if the weights are, else float32: what x and sigma are cast to."""
        weights = next(self.parameters()).dtype
        return weights if weights == torch.float64 else torch.float32

    @property
    def network(self) -> nn.Module:
        """The network F."""
        return getattr(self, self.inner)

    @property
    def features_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the features that `encode` returns."""
        return self.network.features_shape

    def forward(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor | float,
        labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The denoised image [n, c, r, r], about [-1, 1], of x = image + sigma * noise, [n, c, r, r].

        sigma: > 0, [n] or a scalar for all. labels: one-hot [n, label_dim] or [label_dim]; None means no
        label; ignored by an unconditional network. augment_labels: [n, augment_dim] or None, the same as
        zeros. Raises ValueError for a shape that does not fit.
        """
        skipped, c_out, inputs = self._scale(x, sigma, labels, augment_labels)
        with self._cast():
            found = self.network(*inputs)
        return skipped + c_out * found.to(skipped.dtype)

    def encode(self, x, sigma, labels=None, augment_labels=None) -> torch.Tensor:
        """The last output of F's encoder, [n, *features_shape], without running the decoder; arguments as above."""
        skipped, _, inputs = self._scale(x, sigma, labels, augment_labels)
        with self._cast():
            return self._run(_features, inputs).to(skipped.dtype)

    def both(self, x, sigma, labels=None, augment_labels=None) -> tuple[torch.Tensor, torch.Tensor]:
        """(denoised images [n, c, r, r], features [n, *features_shape]): `forward` and `encode` in one pass."""
        skipped, c_out, inputs = self._scale(x, sigma, labels, augment_labels)
        with self._cast():
            found, features = self._run(_output_and_features, inputs)
        return skipped + c_out * found.to(skipped.dtype), features.to(skipped.dtype)

    def ready(self) -> None:
        """Update the half precision copies of the weights now instead of in the next pass."""
        if self.precision != torch.float32:
            self.copies.refresh(self.network, self.precision)

    def compile_passes(self, **options) -> None:
        """Compile F for `forward`, `encode` and `both`.

        options: of torch.compile. Compilation happens in the first pass.
        """
        self.network.compile(**options)
        self._compiled = {each: torch.compile(each, **options) for each in (_features, _output_and_features)}

    def _run(self, run, inputs: tuple):
        return self._compiled.get(run, run)(self.network, *inputs)

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_compiled": {}}  # a copy is not compiled, as torch has it for Module.compile

    def _cast(self) -> AbstractContextManager:
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return self.copies.inside(self.network, self.precision)

    def _scale(self, x, sigma, labels, augment_labels) -> tuple[torch.Tensor, torch.Tensor, tuple]:
        """c_skip x, c_out and the arguments of F."""
        x = x.to(self.dtype)
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
        self._check(x, sigma)
        labels = self._rows("labels", labels, self.label_dim, x) if self.label_dim else None
        if self.label_dim and labels is None:
            labels = x.new_zeros(1, self.label_dim)
        augment_labels = self._rows("augment_labels", augment_labels, self.augment_dim, x)
        c_skip, c_out, c_in, c_noise = noise.precondition(sigma, self.sigma_data, self.boundary)
        return c_skip * x, c_out, (c_in * x, c_noise.flatten(), labels, augment_labels)

    def _check(self, x: torch.Tensor, sigma: torch.Tensor) -> None:
        expected = (self.img_channels, self.img_resolution, self.img_resolution)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(f"x has the shape {list(x.shape)}, expected [n, {str(list(expected))[1:]}.")
        if len(sigma) not in (1, len(x)):
            raise ValueError(f"There are {len(sigma)} values of sigma for {len(x)} images.")

    def _rows(self, name: str, rows: torch.Tensor | None, width: int, x: torch.Tensor) -> torch.Tensor | None:
        if rows is None:
            return None
        if not width or rows.shape[-1] != width or rows.numel() not in (width, width * len(x)):
            raise ValueError(f"{name} has the shape {list(rows.shape)}, expected [{len(x)}, {width}].")
        return rows.to(x).reshape(-1, width)


def _features(network: nn.Module, *inputs) -> torch.Tensor:
    return network.encode(*inputs)[0]


def _output_and_features(network: nn.Module, *inputs) -> tuple[torch.Tensor, torch.Tensor]:
    features, skips, embedding = network.encode(*inputs)
    return network.decode(features, skips, embedding), features
