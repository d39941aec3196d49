# SPDX-License-Identifier: Apache-2.0
"""Kernel distance between the features of generated and of real images."""

from __future__ import annotations

import numpy as np

from eldistill.evaluate.arithmetic import cubic_sums
from eldistill.evaluate.remembered import once

COVERED_BY = "metrics"


def kid(fake: np.ndarray, real: np.ndarray, options: dict) -> float:
    """Kernel distance (Binkowski et al. 2018): unbiased MMD^2 with the kernel (x.y/D + 1)^3 over all images; may be negative.

    Features are divided by the square root of the mean variance of the real ones, so that feature spaces are comparable.
    """
    scale = once(real, "scale", lambda: _scale(real))
    m, n = len(fake), len(real)
    (sum_x, trace_x), (across, _) = cubic_sums(fake, fake, scale), cubic_sums(fake, real, scale)
    sum_y, trace_y = pairs_of(real)
    return float((sum_x - trace_x) / (m * (m - 1)) + (sum_y - trace_y) / (n * (n - 1)) - 2 * (across / (m * n)))


def _scale(real: np.ndarray) -> float:
    return float(np.sqrt(np.mean(real.var(0)))) or 1.0


def pairs_of(real: np.ndarray) -> tuple[float, float]:
    """Sum and trace of the kernel of `kid` over all pairs of real features [n, D], remembered by `once`."""
    found: tuple[float, float] = once(real, "pairs", lambda: cubic_sums(real, real, _scale(real)))
    return found
