# SPDX-License-Identifier: Apache-2.0
"""Functions that torch compiles into one kernel on a GPU, with the plain function as a fallback."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

COVERED_BY = "noise"
DEVICES = ("cuda",)  # types of devices for which functions are compiled
VARIANTS = 32  # compiled versions of one function; beyond this limit torch silently stops compiling


class Kernel:
    """A function that is compiled when it is first called for a device of DEVICES.

    function: takes tensors and numbers; its result has no gradient. name: subject of the warning. If the function
    cannot be compiled, one warning is given and the plain function is used, which returns the same values.
    """

    def __init__(self, function: Callable[..., Any], name: str):
        self.function, self.name = function, name
        self.failed: str | None = None  # why compilation failed, if it did
        self._compiled: Callable[..., Any] | None = None

    def compiled(self) -> Callable[..., Any]:
        """The compiled function."""
        if self._compiled is None:
            self._compiled = torch.compile(self.function, dynamic=True, fullgraph=True)
        return self._compiled

    def __call__(self, *arguments: Any, otherwise: Callable[[], Any]) -> Any:
        """The result of the compiled function, or that of `otherwise()` if there is no compiled code."""
        if self.failed is None and not counted():
            try:
                # Torch keeps this setting for each thread, and a backward pass on a GPU has a thread of its own.
                with torch._dynamo.config.patch(recompile_limit=max(torch._dynamo.config.recompile_limit, VARIANTS)):
                    return self.compiled()(*arguments)
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except Exception as error:  # compilers raise many types of error; the plain function needs none of them
                self.failed = (str(error).strip().splitlines() or [type(error).__name__])[0]
                warnings.warn(
                    f"{self.name} without compiled code, which is slower and equal otherwise: {self.failed}",
                    stacklevel=3,
                )
        return otherwise()


def counted() -> bool:
    """Whether torch counts or records single operations now, as FlopCounterMode does; this excludes compiled code."""
    return torch._C._len_torch_dispatch_stack() > 0
