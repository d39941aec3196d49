# SPDX-License-Identifier: Apache-2.0
"""What a step is given (Work), and what several steps do alike: train in a locked folder, replace outputs, find the machine."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from eldistill import files
from eldistill.errors import NonFinite, Problem
from eldistill.paths import PACKAGE
from eldistill.plan.params import Params
from eldistill.plan.plan import Plan
from eldistill.plan.recipes import MEASURED, Step, by_role
from eldistill.training.machine import Machine

COVERED_BY = "evaluate"
MACHINE = (
    "channels_last",
    "recompute",
    "compile",
    "tf32",
    "deterministic",
    "benchmark",
)  # keys of distil, fields of Machine


@dataclass
class Work:
    """One step, as the function of its word gets it."""

    step: Step
    recipe: dict[str, Any]  # the parsed recipe that is followed
    digest: str  # its sha256
    upstream: tuple[Step, ...]  # as the recipe names them; all of them are there and fit
    plan: Plan
    machine: Machine
    say: Callable[[str], None]  # prints a line that begins with the name of the step
    force: bool  # made again although an earlier attempt failed
    first: bool  # whether this process writes and speaks, where several share the step
    alone: bool  # whether one process makes it
    state: Path | None = None  # the folder of its saved state, removed when the step is done

    def __post_init__(self) -> None:
        self.inputs = by_role(self.upstream)

    @property
    def params(self) -> dict[str, Any]:
        """The resolved parameters in the recipe."""
        params: dict[str, Any] = self.recipe["params"]
        return params

    @property
    def outputs(self) -> list[Path]:
        """Files to write, in the order of the step."""
        return [Path(output) for output in self.step.outputs]

    def output(self, name: str) -> Path:
        """The output with this file name."""
        return next(path for path in self.outputs if path.name == name)

    def input(self, role: str) -> Path:
        """The first output of the step upstream with this role; of several the first one's."""
        return Path(self.inputs[role][0].outputs[0])

    def optional(self, role: str) -> Path | None:
        """As `input`, None where no step upstream has this role."""
        return self.input(role) if role in self.inputs else None


# --- the machine ----------------------------------------------------------------------------------------


def machine(values: Params, params: dict[str, Any], step: Step, max_minutes: float) -> Machine:
    """What params.yaml, a launcher and the device say. params: those in the recipe. Raises Problem where `cuda` is asked for
    and there is none."""
    top = values.top("distil")
    # A quarter of the time, at most five minutes, is left for the last step, saving, and starting.
    seconds = 60 * max_minutes
    return Machine(
        device=_device(values.top("device"), step), micro_batch=_micro_batch(top, params), fit=top["fit"],
        save_seconds=top["save_seconds"], max_seconds=seconds - min(300, seconds / 4), batch=values.top("evaluate")["batch"],
        **{key: top[key] for key in MACHINE},
    )  # fmt: skip


def _device(asked: str, step: Step) -> str:
    if step.word == "tables" or asked == "cpu":
        return asked
    import torch

    found = torch.cuda.is_available()
    if asked == "cuda" and not found and (step.word in ("teacher", "distil") or step.kind in MEASURED):
        raise Problem("params.yaml: device is cuda, but torch sees no GPU; set it to auto or cpu")
    return "cuda" if found else "cpu"


def _micro_batch(top: dict[str, Any], params: dict[str, Any]) -> int:
    # What a launcher found to fit on every GPU, else what params.yaml says.
    parts = int(os.environ.get("ELDISTILL_PARTS", "1"))
    if parts < 2:
        asked: int = top["micro_batch"]
        return asked
    return -(-_batch(params) // (int(os.environ["WORLD_SIZE"]) * parts))


def _batch(params: dict[str, Any]) -> int:
    # Of a training: a distil recipe has it with the numbers of its method; a judge's is its own affair.
    batch: int = params.get("method", params).get("batch", 0)
    return batch


def set_threads(threads: int, word: str) -> None:
    """What every step but `tables` begins with: CPU threads, and arithmetic that repeats."""
    if word != "tables":
        import torch

        from eldistill.training import compute

        compute.keep_memory()
        torch.set_num_threads(threads)
        # float32 means float32, and equal seeds equal bits, as far as cuDNN offers it.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


# --- outputs --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def overwriting(step: Step) -> Iterator[None]:
    """While outputs are replaced an older recipe must not vouch for a mixture; if none was, it may again."""
    sidecar, before = Path(step.sidecar), [_signature(output) for output in step.outputs]
    old = sidecar.read_text(encoding="utf-8") if sidecar.exists() else None
    sidecar.unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        if old is not None and [_signature(output) for output in step.outputs] == before:
            with contextlib.suppress(OSError):
                files.write_text(sidecar, old)
        raise


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


# --- trainings ------------------------------------------------------------------------------------------


def train(work: Work, make: Callable[[Path], None]) -> None:
    """Run a training in its locked state folder; remember a failure that repeating cannot cure.

    Raises Problem where it failed before with the same code on the same machine, and what the training raises.
    """
    from eldistill.training import compute, lock, state

    folder = work.state = state.folder(work.digest)
    code = _code(work.machine)
    with lock.lock(folder) if work.first else contextlib.nullcontext():
        if not work.force and (sentence := state.failure(folder, code)):
            raise Problem(f"this run failed before: {sentence}; change its numbers, or delete {folder} to try again")
        while True:
            try:
                return make(folder)
            except NonFinite as error:
                state.remember_failure(folder, str(error), code)
                raise
            except RuntimeError as error:
                if sentence := compute.not_repeatable(error):
                    raise Problem(sentence) from error
                if not compute.out_of_memory(error) or not (smaller := _smaller(work)):
                    raise
            _free_memory()
            work.machine.micro_batch = smaller
            work.say(f"the device has too little memory; continuing with {smaller} images at once")


def _code(machine: Machine) -> str:
    # Of everything that may turn a failure into a success: the sources, torch, and how the machine computes.
    sources = files.digest("".join(p.read_text(encoding="utf-8") for p in sorted(PACKAGE.rglob("*.py"))))
    how = " ".join(str(getattr(machine, key)) for key in ("device", "micro_batch", *MACHINE))
    return files.digest(f"{sources} {how} {metadata.version('torch')}")


def _smaller(work: Work) -> int:
    """Half as many images at once as now; 0 if there are no fewer, or if somebody else has to decide: of several processes
    all must change together, which `launch` does."""
    now = work.machine.micro_batch or _batch(work.params)
    fewest = work.params.get("method", {}).get("group", 1)  # images that must be together
    return max(fewest, -(-now // 2)) if work.machine.fit and work.alone and now > fewest else 0


def _free_memory() -> None:
    # Networks of the attempt that failed hang together in circles.
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
