# SPDX-License-Identifier: Apache-2.0
"""Precision, memory layout, recomputation and compilation of the networks in a training, and how much memory they take.

Generated images that are evaluated use none of these settings.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from eldistill.contract import Denoiser
from eldistill.errors import Problem
from eldistill.training.machine import Machine

COVERED_BY = "loop"
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of mallopt (glibc)
VARIANTS = (
    32  # upper limit of compiled versions of one network: trained or frozen, with or without gradients and labels
)


def keep_memory() -> None:
    """Keep freed memory in this process for the next pass (Linux with glibc on a CPU; elsewhere nothing happens).

    By default glibc returns memory to the system after every pass and requests it again page by page, thousands of
    times in an iteration. The peak memory of the process does not change.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, size in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_THRESHOLD, 2**25), (M_TOP_PAD, 2**26)):
            mallopt(option, size)


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic that a training used, as its provenance records it."""

    precision: str  # of the networks: float32 or bfloat16
    tf32: bool  # whether float32 convolutions round their inputs to 10 bits of mantissa (TF32)
    deterministic: bool  # whether equal runs on this device give results that are equal to the bit
    benchmark: bool  # whether cuDNN chose its convolution algorithms by timing them


def set_arithmetic(wanted: str, machine: Machine, nets: Iterable[Denoiser]) -> Arithmetic:
    """Set the arithmetic of this process and the precision of the denoisers, and return what was set.

    wanted: float32 or bfloat16. machine: its tf32, deterministic and benchmark are used on a GPU only: a CPU always
    trains in float32 and deterministically.
    """
    gpu = "cuda" in str(machine.device)
    deterministic = machine.deterministic is True or not gpu
    used = Arithmetic(
        precision=wanted if gpu else "float32", tf32=gpu and machine.tf32, deterministic=deterministic,
        benchmark=gpu and (machine.benchmark is True or (machine.benchmark == "auto" and not deterministic)),
    )  # fmt: skip
    set_precision(used.precision, nets)
    if gpu:
        # Of convolutions alone: the distances of EL are small differences of products.
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, used.tf32
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = used.benchmark, used.deterministic
        if used.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
            flags: Any = torch.utils.deterministic  # a module that is a class, unknown to a type checker
            flags.fill_uninitialized_memory = False  # we read nothing that was not written
            torch.use_deterministic_algorithms(True)  # with warn_only torch would take attention that is not
    return used


def set_precision(name: str, nets: Iterable[Denoiser]) -> None:
    """Set the precision of denoisers: float32, tf32 (of the whole process) or bfloat16 (see networks/half.py)."""
    if name == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    for net in nets:
        net.precision = torch.bfloat16 if name == "bfloat16" else torch.float32


def recompute_blocks(nets: Iterable[Denoiser]) -> None:
    """Let blocks keep only their inputs and compute the rest again in the backward pass (see layers.Recomputed)."""
    for block in (each for net in nets for each in net.modules() if hasattr(each, "recompute")):
        block.recompute = True


def set_channels_last(nets: Iterable[torch.nn.Module]) -> None:
    """Store images and weights in the channels-last layout. Results are equal up to rounding."""
    for net in nets:
        net.to(memory_format=torch.channels_last)


def prepare_networks(machine: Machine, fixed: list[torch.nn.Module], trained: list[torch.nn.Module]) -> None:
    """Apply channels_last, recompute and compile of the machine.

    fixed: networks that are not trained. Raises Problem.
    """
    if machine.channels_last:
        set_channels_last([*fixed, *trained])
    if machine.recompute:
        recompute_blocks(trained)
    if machine.compile:
        compile_networks([*fixed, *trained])


def compile_networks(nets: Iterable[Denoiser]) -> None:
    """Compile complete passes through these denoisers for fixed shapes. Results are equal up to rounding.

    This includes passes that return encoder features, for the discriminators of SiDA and DMD2. DMD2's head, a few
    layers in float32, is not compiled, and neither is a deep copy of a denoiser. Raises Problem if torch finds no C++
    compiler.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(compiler):
        raise Problem(
            f"params.yaml: distil.compile is true, but there is no C++ compiler {compiler} on this machine; install it, name "
            "another by the environment variable CXX, or set distil.compile to false"
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    torch._functorch.config.donated_buffer = False  # a supplement may run the same graph backwards again
    for net in nets:
        if hasattr(net, "compile_passes"):
            net.compile_passes(dynamic=False)


def without_compiled_code(was_compiled: bool) -> AbstractContextManager:
    """A context without compiled code, in which torch can count operations one by one.

    was_compiled: False changes nothing.
    """
    return torch.compiler.set_stance("force_eager") if was_compiled else contextlib.nullcontext()


def memory_gib(device: str) -> float:
    """Peak memory of this process in GiB, on the GPU, or for a CPU of the whole process including torch."""
    if "cuda" in str(device):
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that a device ran out of memory. Libraries of devices word it differently."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))


def not_repeatable(error: BaseException) -> str | None:
    """A sentence for the user if torch has no deterministic version of an operation; None for any other error."""
    text = " ".join(str(error).split())
    if not isinstance(error, RuntimeError) or "deterministic" not in text:
        return None
    return (
        f"params.yaml: distil.deterministic is true, but torch cannot repeat an operation of this run on a GPU ({text[:120]}); "
        "set it to auto"
    )
