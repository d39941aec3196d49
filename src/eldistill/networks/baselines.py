# SPDX-License-Identifier: Apache-2.0
"""The baselines of EDM: U-Nets with the preconditioning of the variance preserving (vp) and variance exploding (ve) processes of
Song et al. 2021 (arXiv 2011.13456), as Karras et al. 2022 (arXiv 2206.00364, table 1) write them:

    vp    D = x - sigma f(x / sqrt(sigma^2 + 1), (M - 1) t),    sigma^2 = exp(beta_d t^2 / 2 + beta_min t) - 1
    ve    D = x + sigma f(x, ln(sigma / 2))

F in EDM's preconditioning is what gives that D (with u = c_in x, d = sigma_data = 0.5 and w = sqrt(sigma^2 + d^2)):

    F = (sigma u - w f) / d  (vp),    F = (sigma u + w f) / d  (ve)

so that everything which is written for EDM's networks holds. Names and shapes of tensors are those of SongUNet and DhariwalUNet.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from eldistill.diffusion.noise import SIGMA_DATA
from eldistill.networks import adm, song
from eldistill.networks.precond import EDMPrecond

RECIPE = ("networks/baselines", 1)
VE_LIMITS = (0.02, 100.0)  # EDM's defaults of sigma_min and sigma_max for ve


@dataclass(frozen=True, kw_only=True)
class Settings(song.Settings):
    """Settings of SongUNet, or of DhariwalUNet, which has none of those that only SongUNet has, and of the process.

    Raises ValueError for an unknown process or U-Net, and for limits that are not ordered.
    """

    process: str = "vp"  # or "ve"
    unet: str = "song"  # or "adm"
    sigma_min: float = VE_LIMITS[0]  # limits of ve; those of vp follow from its process
    sigma_max: float | None = VE_LIMITS[1]
    beta_d: float = 19.9  # of vp: twice the increase of the noise level's rate
    beta_min: float = 0.1  # of vp: the rate at t = 0
    epsilon_t: float = 1e-5  # of vp: smallest t
    steps: int = 1000  # of vp: M

    def __post_init__(self):
        song._one_of("process", self.process, ("vp", "ve"))
        song._one_of("unet", self.unet, ("song", "adm"))
        self.inner()
        if self.sigma_data != SIGMA_DATA:
            raise ValueError(
                f"sigma_data is {self.sigma_data}; these processes know none, so that it stays {SIGMA_DATA}"
            )
        low, high = self.limits()
        if not (0 < low < high < math.inf):
            raise ValueError(
                f"noise levels of {self.process} go from {low:g} to {high:g}; expected ascending ones above 0"
            )

    def inner(self) -> song.Settings | adm.Settings:
        """The settings of the U-Net."""
        kind = {"song": song.Settings, "adm": adm.Settings}[self.unet]
        keys = {field.name for field in dataclasses.fields(kind)} - {"sigma_min", "sigma_max"}
        return kind(**{key: getattr(self, key) for key in keys})

    def sigma(self, t: float) -> float:
        """The noise level of vp at t in [0, 1]."""
        return math.sqrt(math.expm1(self.beta_d * t**2 / 2 + self.beta_min * t))

    def limits(self) -> tuple[float, float]:
        """Smallest and largest noise level of the training."""
        if self.process == "vp":
            return self.sigma(self.epsilon_t), self.sigma(1.0)
        return self.sigma_min, math.inf if self.sigma_max is None else self.sigma_max


def network(**settings) -> EDMPrecond:
    """The denoiser; keywords and errors are those of `Settings`."""
    s = Settings(**settings)
    low, high = s.limits()
    model = {"song": Song, "adm": Dhariwal}[s.unet](s)
    return EDMPrecond(model, sigma_data=SIGMA_DATA, sigma_min=low, sigma_max=high)


class _Process:
    """A U-Net as F(u, c_noise), u [n, c, r, r] of about unit variance, c_noise = ln(sigma) / 4."""

    def __init__(self, settings: Settings):
        super().__init__(settings.inner())
        self.settings = settings

    def encode(self, x, c_noise, labels=None, augment_labels=None) -> tuple:
        """Features [n, *features_shape] at the lowest resolution, the skips, and what else `decode` needs."""
        sigma = (4 * c_noise).exp()
        whole = (sigma**2 + SIGMA_DATA**2).sqrt()
        scale = whole / (sigma**2 + 1).sqrt() if self.settings.process == "vp" else whole
        inner = x * scale.reshape(-1, 1, 1, 1)
        features, skips, embedding = super().encode(inner, self.label(sigma), labels, augment_labels)
        return features, skips, (embedding, x, sigma.reshape(-1, 1, 1, 1))

    def decode(self, features: torch.Tensor, skips, embedding) -> torch.Tensor:
        """F(u, c_noise) [n, c, r, r] from what `encode` returned."""
        embedding, x, sigma = embedding
        out = super().decode(features, skips, embedding)
        whole = (sigma**2 + SIGMA_DATA**2).sqrt()
        return (sigma * x + (-whole if self.settings.process == "vp" else whole) * out) / SIGMA_DATA

    def label(self, sigma: torch.Tensor) -> torch.Tensor:
        """The noise label of the U-Net [m] for sigma [m]. Beyond the limits of the training it stays at the end."""
        s = self.settings
        sigma = sigma.clamp(*s.limits())
        if s.process == "ve":
            return (sigma / 2).log()
        root = (s.beta_min**2 + 2 * s.beta_d * (sigma**2).log1p()).sqrt()
        return (s.steps - 1) * (root - s.beta_min) / s.beta_d


class Song(_Process, song.SongUNet):
    """SongUNet with one of the two processes."""


class Dhariwal(_Process, adm.DhariwalUNet):
    """DhariwalUNet with one of the two processes."""
