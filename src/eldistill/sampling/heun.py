# SPDX-License-Identifier: Apache-2.0
"""EDM's sampler of a denoiser, deterministic or stochastic."""

from __future__ import annotations

import torch

from eldistill.diffusion import noise

COVERED_BY = "sampling"


def heun(
    network, latents: torch.Tensor, labels=None, steps: int = 18, sigma_min: float = noise.SIGMA_MIN,
    sigma_max: float = noise.SIGMA_MAX, rho: float = noise.RHO, churn: float = 0, s_min: float = 0,
    s_max: float = float("inf"), s_noise: float = 1, fresh=None,
) -> torch.Tensor:  # fmt: skip
    """EDM's sampler, algorithm 2 (deterministic with churn 0): 2 steps - 1 network calls; arithmetic in float64.

    latents: N(0, 1), [n, c, h, w]. labels: one-hot [n, L] or None. fresh: function from the number of a step to new
    noise N(0, 1), [n, c, h, w], needed with churn. Returns images [n, c, h, w] in float64. Raises ValueError for churn
    without it.
    """
    if churn and fresh is None:
        raise ValueError("heun with churn needs `fresh`, which gives the noise")
    sigmas = torch.cat(
        [noise.karras_sigmas(steps, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)]
    ).tolist()
    dtype = next(network.parameters()).dtype

    def slope(x: torch.Tensor, sigma: float) -> torch.Tensor:
        level = torch.full((len(x),), sigma, dtype=dtype, device=x.device)
        return (x - network(x.to(dtype), level, labels).double()) / sigma

    x = latents.double() * sigmas[0]
    for step, (now, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        gamma = min(churn / steps, 2**0.5 - 1) if s_min <= now <= s_max else 0.0
        raised = now * (1 + gamma)
        if fresh is not None and churn:
            x = x + (raised**2 - now**2) ** 0.5 * s_noise * fresh(step).double()
        d = slope(x, raised)
        euler = x + (following - raised) * d
        x = euler if following == 0 else x + (following - raised) * (d + slope(euler, following)) / 2
    return x
