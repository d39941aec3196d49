# SPDX-License-Identifier: Apache-2.0
"""Teachers as files of ours hold them, ready to be used."""

from __future__ import annotations

from pathlib import Path

import torch

from eldistill.errors import Problem
from eldistill.external import weights
from eldistill.tensors import load_tensors

COVERED_BY = "sampling"


def load(path: str | Path, device="cpu", dtype=torch.float32) -> tuple[torch.nn.Module, dict]:
    """(frozen teacher, description) from a file of ours, whose tensors are finite floats of the shapes that its description
    asks for. Raises Problem."""
    tensors, about = load_tensors(path)
    if "sampler" in about:
        raise Problem(
            f"{path} is a one-step generator, which knows no other noise level; expected a teacher.safetensors"
        )
    if lacking := [key for key in ("config", "codec", "shape", "label_dim") if key not in about]:
        raise Problem(
            f"{path} is not a teacher of this project: its description has no {lacking[0]}; expected a teacher.safetensors"
        )
    net = weights.restore(path, tensors, about)
    return net.requires_grad_(False).eval().to(device, dtype), about
