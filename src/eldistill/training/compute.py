# SPDX-License-Identifier: Apache-2.0
"""How the networks of a training compute: their precision, compiled or not, what they keep for the way back,
and where their memory comes from. The evaluated images are made without any of it but the last.
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
VARIANTS = 32  # of one network's code: trained or not, with a gradient of weights or input, with labels or without


def keep_memory() -> None:
    """On a CPU under Linux: memory that a pass has freed is kept for the next one.

    glibc gives it back to the system after every pass and gets it again page by page, thousands of times in an iteration
    that holds the graphs of several networks. What this process holds at most stays what it was.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, size in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_THRESHOLD, 2**25), (M_TOP_PAD, 2**26)):
            mallopt(option, size)


@dataclass(frozen=True)
class Arithmetic:
    """How a training computed: for its provenance."""

    precision: str  # of the networks: float32 or bfloat16
    tf32: bool  # convolutions of float32 rounded what enters them to 10 bits
    deterministic: bool  # equal runs on this device give equal bits
    benchmark: bool  # convolutions were chosen by a trial


def set_arithmetic(wanted: str, machine: Machine, nets: Iterable[Denoiser]) -> Arithmetic:
    """Set how this process trains these denoisers: wanted (float32 or bfloat16), and what params.yaml says of the
    machine. A CPU trains in float32 and gives equal bits, whatever they say."""
    gpu = "cuda" in str(machine.device)
    deterministic = machine.deterministic is True or not gpu
    used = Arithmetic(
        precision=wanted if gpu else "float32", tf32=gpu and machine.tf32, deterministic=deterministic,
        benchmark=gpu and (machine.benchmark is True or (machine.benchmark == "auto" and not deterministic)),
    )  # fmt: skip
    set_precision(used.precision, nets)
    if gpu:
        torch.backends.cudnn.allow_tf32 = (
            used.tf32
        )  # of convolutions alone: distances of EL are small differences of products
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = used.benchmark, used.deterministic
        if used.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
            flags: Any = torch.utils.deterministic  # a module that is a class, unknown to a type checker
            flags.fill_uninitialized_memory = False  # we read nothing that was not written
            torch.use_deterministic_algorithms(True)  # with warn_only torch would take attention that is not
    return used


def set_precision(name: str, nets: Iterable[Denoiser]) -> None:
    """float32, tf32 (of a process that began without it: steps/work.py) or bfloat16 (networks/half.py) of these denoisers."""
    if name == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    for net in nets:
        net.precision = torch.bfloat16 if name == "bfloat16" else torch.float32


def recompute_blocks(nets: Iterable[Denoiser]) -> None:
    """Their blocks keep their inputs alone and are computed again on the way back (layers.Recomputed)."""
    for block in (each for net in nets for each in net.modules() if hasattr(each, "recompute")):
        block.recompute = True


def set_channels_last(nets: Iterable[torch.nn.Module]) -> None:
    """Their convolutions have the channels of a pixel beside each other in memory. The same up to rounding."""
    for net in nets:
        net.to(memory_format=torch.channels_last)


def prepare_networks(machine: Machine, fixed: list[torch.nn.Module], trained: list[torch.nn.Module]) -> None:
    """What params.yaml says of this machine (channels_last, recompute, compile), for networks held and trained."""
    if machine.channels_last:
        set_channels_last([*fixed, *trained])
    if machine.recompute:
        recompute_blocks(trained)
    if machine.compile:
        compile_networks([*fixed, *trained])


def compile_networks(nets: Iterable[Denoiser]) -> None:
    """Compile whole passes through these denoisers for their shapes; a copy of one is not compiled. Equal up to rounding.

    That includes the passes of SiDA's and DMD2's discriminators, which ask for the encoder's features. DMD2's head itself,
    a few layers in float32, stays as it is. Raises Problem without a C++ compiler, by the name that torch looks for.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(compiler):
        raise Problem(
            f"params.yaml: distil.compile is true, but there is no C++ compiler {compiler} on this machine; install it, name "
            "another by the environment variable CXX, or set distil.compile to false"
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    torch._functorch.config.donated_buffer = False  # a graph may be run backwards again: for every supplement
    for net in nets:
        if hasattr(net, "compile_passes"):
            net.compile_passes(dynamic=False)


def without_compiled_code(was_compiled: bool) -> AbstractContextManager:
    """A context in which nothing that was compiled is used: operations are counted one by one."""
    return torch.compiler.set_stance("force_eager") if was_compiled else contextlib.nullcontext()


def memory_gib(device: str) -> float:
    """The most memory that this process has held: of the GPU, or on a CPU of the whole process, torch included."""
    if "cuda" in str(device):
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory; its libraries say so in words of their own."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))


def not_repeatable(error: BaseException) -> str | None:
    """A sentence, where torch has no form of an operation that gives equal bits in equal runs."""
    text = " ".join(str(error).split())
    if not isinstance(error, RuntimeError) or "deterministic" not in text:
        return None
    return (
        f"params.yaml: distil.deterministic is true, but torch cannot repeat an operation of this run on a GPU ({text[:120]}); "
        "set it to auto"
    )
