# SPDX-License-Identifier: Apache-2.0
"""One distillation of a suite, by its four names."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """One distillation: data setting, method, supplement(s) joined by +, seed. str(run) is its folder."""

    data: str
    method: str
    supplement: str
    seed: int

    def __str__(self) -> str:
        return f"{self.data}/{self.method}/{self.supplement}/{self.seed}"

    @property
    def supplements(self) -> tuple[str, ...]:
        """The supplements one by one; empty for `none`."""
        return () if self.supplement == "none" else tuple(self.supplement.split("+"))
