# SPDX-License-Identifier: Apache-2.0
"""Directional derivatives of denoisers in forward mode, for losses that contain the derivative along a path of noise levels.

    jvp(nets, f, (x, t), (v, w)) = f(x, t), d/ds f(x + s v, t + s w) at s = 0

One pass computes both and keeps no graph: neither result has a gradient to the weights. It takes the operations of three
forward passes, because the rule of torch for convolutions also has the term of the weights, which is zero here. torch.func.jvp
does the work. It serves all networks of this project, with their attention, group norms, resampling and dropout, in float32,
float64 and bfloat16.

Dropout needs `dropout.masks` inside f, so that the masks are those of another pass of the same images. Blocks that are set
to recompute keep what they computed. Passes that are compiled run without compiled code here. Where a network clamps the
noise level (`ddpm`, `vp` and `ve` beyond the limits of their training) the derivative to the level is that of the clamped
function, 0 in what is clamped. Not supported: derivatives of the results, f that draws from a global generator, and
networks whose operations have no forward-mode formula in torch, for which torch raises NotImplementedError.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterable, Sequence

import torch

from eldistill.contract import Denoiser
from eldistill.networks import half

RECIPE = ("tangent", 1)
PASSES = 3  # operations of a derivative and its value, in forward passes


@torch.no_grad()
def jvp(
    denoisers: Iterable[Denoiser],
    function: Callable[..., torch.Tensor],
    at: Sequence[torch.Tensor],
    along: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(function(*at), its derivative at `at` in the direction `along`), both of the value's shape and without a graph.

    denoisers: the networks that `function` passes through. at, along: tensors of pairwise equal shapes and types.
    """
    _load_rules()
    nets = [each for each in denoisers if hasattr(each, "ready")]
    compiled = any(each._compiled for each in nets)
    with half.forward_mode(*nets), torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
        found = torch.func.jvp(function, tuple(at), tuple(along))
    return found[0], found[1]


@functools.cache
def _load_rules() -> None:
    # torch loads these rules at the first derivative in forward mode, with a warning about a part of torch that they use.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".torch.jit.script", FutureWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")
