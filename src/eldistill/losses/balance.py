# SPDX-License-Identifier: Apache-2.0
"""The factor of a loss whose strength is given as a share of the base loss's gradient.

Base losses differ in scale by ten powers of ten and more: SiD's is 100 times a sum over pixels, Diff-Instruct's a mean.
A share has the same meaning beside all of them.
"""

from __future__ import annotations

import math

from eldistill.contract import Weight

RECIPE = ("balance", 1)
LOW, HIGH = 1e-12, 1e12  # of the ratio: what rounding leaves of a loss that has vanished is not blown up for ever


def balanced(share: float, base: float, own: float, decay: float, memory: dict[str, float]) -> Weight:
    """The factor share * EMA[base] / EMA[own], the ratio of the averages held between LOW and HIGH.

    base, own: root mean squares of the two gradients where they meet, >= 0. decay: of both averages, which start at 0
    together, so that their ratio is unbiased from the first step on. `memory` keeps them, as "base" and "own". While the
    base loss has no gradient the factor is 0; a loss without a gradient of its own gets the bound.
    """
    for name, rms in (("base", base), ("own", own)):
        memory[name] = decay * memory.get(name, 0.0) + (1 - decay) * rms
    if memory["base"] == 0:
        return Weight(0.0)
    ratio = memory["base"] / memory["own"] if memory["own"] else math.inf
    held = min(max(ratio, LOW), HIGH)
    return Weight(share * held, bounded=held != ratio)
