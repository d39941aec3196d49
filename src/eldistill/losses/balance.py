# SPDX-License-Identifier: Apache-2.0
"""The factor of a loss whose strength is given as a share of the base loss's gradient.

Base losses differ in scale by ten powers of ten and more: SiD's is 100 times a sum over pixels, Diff-Instruct's a mean.
A share has the same meaning beside all of them.
"""

from __future__ import annotations

import torch

from eldistill.contract import Weight

RECIPE = ("balance", 1)
LOW, HIGH = 1e-12, 1e12  # of the ratio: a loss that has vanished but for rounding is not amplified without limit


Scalar = float | torch.Tensor


def balanced(share: float, base: Scalar, own: Scalar, decay: float, memory: dict[str, Scalar]) -> Weight:
    """The factor share * EMA[base] / EMA[own], the ratio of the averages held between LOW and HIGH.

    base, own: root mean squares of the two gradients where they meet, >= 0; scalars of a device stay there. decay: of
    both averages, which start at 0 together, so that their ratio is unbiased from the first step on. `memory` keeps
    them, as "base" and "own". While the base loss has no gradient the factor is 0; a loss without a gradient of its own
    gets the bound.
    """
    for name, rms in (("base", base), ("own", own)):
        memory[name] = decay * memory.get(name, 0.0) + (1 - decay) * rms
    above, below = (torch.as_tensor(memory[name], dtype=torch.float64) for name in ("base", "own"))
    ratio, there = above / below, above != 0  # infinite if `below` is 0; the clamp bounds it
    held = ratio.clamp(LOW, HIGH)
    return Weight(torch.where(there, share * held, 0.0), bounded=there & (held != ratio))
