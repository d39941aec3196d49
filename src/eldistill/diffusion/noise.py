# SPDX-License-Identifier: Apache-2.0
"""Noise levels, weights of losses and preconditioning (Karras et al. 2022, arXiv 2206.00364): pure functions."""

from __future__ import annotations

import torch

RECIPE = ("noise", 1)

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # EDM, table 1
SIGMA_DATA = 0.5  # standard deviation of encoded images, pixels and latents alike (EDM, table 1)


def precondition(sigma: torch.Tensor, sigma_data: float, boundary: float = 0.0) -> tuple[torch.Tensor, ...]:
    """c_skip, c_out, c_in, c_noise of D = c_skip x + c_out F(c_in x; c_noise) (EDM, table 1).

    sigma: any shape, > 0 for c_noise to be finite. Each result has sigma's shape.
    boundary: the sigma at which D(x) = x; not 0 in consistency models (arXiv 2303.01469, appendix C).
    """
    above = sigma - boundary
    variance = sigma**2 + sigma_data**2
    c_skip = sigma_data**2 / (above**2 + sigma_data**2)
    return c_skip, above * sigma_data / variance.sqrt(), 1 / variance.sqrt(), sigma.log() / 4


def edm_weight(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """lambda(sigma) = 1 / c_out^2, the weight of the denoising loss (EDM, table 1). Same shape as sigma."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def karras_sigmas(n: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO) -> torch.Tensor:
    """n noise levels from sigma_max down to sigma_min, float64 [n] (EDM, eq. 5, without the final 0)."""
    steps = torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1, dtype=torch.float64)
    return (sigma_max ** (1 / rho) + steps * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def warped_sigma(u: torch.Tensor, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO):
    """The noise level at the position u in [0, 1] of Karras' grid, from sigma_min at 0 to sigma_max at 1; u's shape."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + (1 - u) * (low - high)) ** rho


def lognormal(normal: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """ln sigma ~ N(mean, std^2) from standard normals of any shape (EDM's training distribution)."""
    return (normal * std + mean).exp()


def denoising_loss(
    network, images: torch.Tensor, labels, sigma: torch.Tensor, noise: torch.Tensor, augment_labels=None
) -> torch.Tensor:
    """EDM's unreduced loss lambda(sigma) (D(x + sigma n; sigma) - x)^2 (EDM, table 1).

    images, noise [n, c, h, w]; sigma [n] > 0; labels [n, L] one-hot or None. Returns [n, c, h, w].
    """
    level = sigma.reshape(-1, 1, 1, 1)
    denoised = network(images + level * noise, sigma, labels, augment_labels)
    return edm_weight(level, network.sigma_data) * (denoised - images) ** 2
