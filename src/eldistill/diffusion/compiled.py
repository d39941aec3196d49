# SPDX-License-Identifier: Apache-2.0
"""Many small operations as one kernel on a GPU, by torch's compiler, and as they are where it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

COVERED_BY = "noise"
DEVICES = ("cuda",)  # on which such code is compiled
VARIANTS = 32  # of one function: beyond, torch would go on uncompiled without a word


class Kernel:
    """A function that is compiled when it is first called for a device of DEVICES.

    function: of tensors and numbers, without a gradient. name: what a warning calls it. Where it cannot be compiled the plain
    form is used, after one warning, and gives the same.
    """

    def __init__(self, function: Callable[..., Any], name: str):
        self.function, self.name = function, name
        self.failed: str | None = None  # why there is no compiled code, once that is known
        self._compiled: Callable[..., Any] | None = None

    def compiled(self) -> Callable[..., Any]:
        """The compiled function."""
        if self._compiled is None:
            self._compiled = torch.compile(self.function, dynamic=True, fullgraph=True)
        return self._compiled

    def __call__(self, *arguments: Any, otherwise: Callable[[], Any]) -> Any:
        """The compiled function of these arguments; what `otherwise` gives, where there is none."""
        if self.failed is None and not counted():
            try:
                # Torch keeps this setting for each thread, and a backward pass on a GPU has a thread of its own.
                with torch._dynamo.config.patch(recompile_limit=max(torch._dynamo.config.recompile_limit, VARIANTS)):
                    return self.compiled()(*arguments)
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except Exception as error:  # of a compiler: whatever it is, the plain form can do without
                self.failed = (str(error).strip().splitlines() or [type(error).__name__])[0]
                warnings.warn(
                    f"{self.name} without compiled code, which is slower and equal otherwise: {self.failed}",
                    stacklevel=3,
                )
        return otherwise()


def counted() -> bool:
    """Whether operations are looked at one by one (FlopCounterMode and its like): then there is nothing to compile."""
    return torch._C._len_torch_dispatch_stack() > 0
