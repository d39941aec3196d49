# SPDX-License-Identifier: Apache-2.0
"""The check of a command's option --device."""

from __future__ import annotations

import torch

from eldistill.errors import Problem

COVERED_BY = "sampling"


def check_device(device: str) -> None:
    """Raise Problem unless `device` is cpu, or cuda and torch sees a GPU."""
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise Problem(f"--device is {device}, but torch does not see it on this machine; use cpu")
