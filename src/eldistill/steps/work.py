# SPDX-License-Identifier: Apache-2.0
"""Work, which each step's function gets, and the tasks that steps share: settings of the machine, outputs, trainings."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from eldistill import environment, files
from eldistill.errors import NonFinite, Problem
from eldistill.numbers import make_numbers
from eldistill.paths import PACKAGE
from eldistill.plan.kept import Kept
from eldistill.plan.params import Params
from eldistill.plan.plan import Plan
from eldistill.plan.recipes import MEASURED, Step, by_role
from eldistill.training.machine import Machine

# The files of steps/ pass paths and numbers to modules that compute. Of them only steps/evaluate.py computes results itself, so all
# name its module. A change of `set_threads` that alters results raises `loop` as well, for trainings.
COVERED_BY = "evaluate"
MACHINE = (
    "channels_last",
    "recompute",
    "compile",
    "tf32",
    "deterministic",
    "benchmark",
)  # keys of distil, fields of Machine

# Variables by which Slurm names the GPUs that it gave a job, and the file that says that a machine has NVIDIA's driver.
GPUS_GIVEN = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
DRIVER_OF_GPUS = Path("/proc/driver/nvidia/version")


@dataclass
class Work:
    """A step with its recipe and its inputs, as the function that makes it gets it."""

    step: Step
    recipe: dict[str, Any]  # the parsed recipe that is followed
    digest: str  # its sha256
    upstream: tuple[Step, ...]  # the steps that the recipe names; their outputs exist and match it
    plan: Plan
    machine: Machine
    say: Callable[[str], None]  # logs a line, which begins with the name of the step
    force: bool  # run it even if an earlier attempt failed
    first: bool  # whether this process writes and logs; of several that share the step only one does
    alone: bool  # whether no other process shares the step
    kept: dict[str, Kept] = field(
        default_factory=dict
    )  # {run: its kept results} of the runs that are read from the kept file
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
        """The files to write, in the order of Step.outputs."""
        return [Path(output) for output in self.step.outputs]

    def output(self, name: str) -> Path:
        """The output with this file name."""
        return next(path for path in self.outputs if path.name == name)

    def input(self, role: str) -> Path:
        """The first output of the upstream step with this role, or of the first such step. Raises KeyError if there is none."""
        return Path(self.inputs[role][0].outputs[0])

    def optional(self, role: str) -> Path | None:
        """Like `input`, but None if no upstream step has this role."""
        return self.input(role) if role in self.inputs else None

    def teacher(self) -> tuple[Path, Path | None]:
        """The file of the teacher, and that of the other network that guides it; None if there is none. Raises KeyError."""
        there = {step.name: Path(step.outputs[0]) for step in self.inputs["teacher"]}
        guidance = self.params.get("guidance")
        if guidance is None:
            return self.input("teacher"), None
        return there[guidance["of"]], there.get(guidance["guide"])


# --- the machine ----------------------------------------------------------------------------------------


def find_machine(values: Params, params: dict[str, Any], step: Step, max_minutes: float) -> Machine:
    """The device, its memory and time limits, and how to compute, from params.yaml, the launcher and the hardware.

    params: those in the recipe. max_minutes: time limit of the process, 0 for none. Raises Problem if params.yaml asks for
    cuda and a step that needs it finds no GPU."""
    top = values.top("distil")
    # A quarter of the time, at most five minutes, is left for the last step, saving, and starting.
    seconds = 60 * max_minutes
    return Machine(
        device=_device(values.top("device"), step), micro_batch=_micro_batch(top, params), fit=top["fit"],
        save_seconds=top["save_seconds"], max_seconds=seconds - min(300, seconds / 4), batch=values.top("evaluate")["batch"],
        log=tuple(top["log"]), **{key: top[key] for key in MACHINE},
    )  # fmt: skip


def _device(asked: str, step: Step) -> str:
    if step.word == "tables" or asked == "cpu":
        return asked
    import torch

    found = torch.cuda.is_available()
    if asked == "cuda" and not found and (step.word in ("teacher", "distil") or step.kind in MEASURED):
        raise Problem("params.yaml: device is cuda, but torch sees no GPU; set it to auto or cpu")
    given = next((name for name in GPUS_GIVEN if os.environ.get(name)), None)
    if not found and given and DRIVER_OF_GPUS.exists():  # hours on a CPU would pass without a word
        raise Problem(
            f"Slurm gave this job a GPU ({given}={os.environ[given]}), and torch {torch.__version__} sees none; compare the driver that "
            "nvidia-smi names on that node with the one that this torch needs, or set device: cpu in params.yaml"
        )
    return "cuda" if found else "cpu"


def _micro_batch(top: dict[str, Any], params: dict[str, Any]) -> int:
    # Images at once: the number that the launcher found to fit on every GPU, otherwise that of params.yaml; 0: the whole batch.
    parts = environment.whole_number("ELDISTILL_PARTS")
    if parts < 2:
        asked: int = top["micro_batch"]
        return asked
    return -(-_batch(params) // (int(os.environ["WORLD_SIZE"]) * parts))


def _batch(params: dict[str, Any]) -> int:
    # Batch of a training, which a distil recipe has among the numbers of its method; 0 for judges, whose batch is not divided.
    batch: int = params.get("method", params).get("batch", 0)
    return batch


def set_threads(threads: int, word: str) -> None:
    """Set the number of CPU threads and repeatable arithmetic. The step `tables` needs neither and does not import torch."""
    if word != "tables":
        import torch

        from eldistill.training import compute

        compute.keep_memory()
        torch.set_num_threads(threads)
        # No TF32, and equal bits for equal seeds as far as cuDNN allows it.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


# --- outputs --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def overwriting(step: Step) -> Iterator[None]:
    """Context in which outputs are replaced. The old recipe is put aside first, because it would vouch for a mixture of old and new
    files; after an error it is put back if no output was changed. It is renamed and not written again, which a full disk refuses."""
    sidecar, before = Path(step.sidecar), [_signature(output) for output in step.outputs]
    aside = sidecar.with_name(f".{sidecar.name}.before.tmp")  # `files.remove_leftovers` knows such names
    with contextlib.suppress(FileNotFoundError):
        os.replace(sidecar, aside)
    try:
        yield
    except BaseException:
        if [_signature(output) for output in step.outputs] == before:
            with contextlib.suppress(OSError):
                os.replace(aside, sidecar)
        raise
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


# --- trainings ------------------------------------------------------------------------------------------


def run_training(work: Work, make: Callable[[Path], None]) -> None:
    """Run a training in its locked state folder. If the device runs out of memory, continue with smaller micro-batches.

    make: the training, called with the state folder. A NaN is remembered, because the same training would fail again: Problem
    is raised at once if the same code failed before on the same machine. Raises what `make` raises.
    """
    from eldistill.training import lock, state

    folder = work.state = state.state_folder(work.digest)
    with lock.lock(folder) if work.first else contextlib.nullcontext():
        with noting(work, folder, NonFinite):
            _fitting(work, folder, make)


def _fitting(work: Work, folder: Path, make: Callable[[Path], None]) -> None:
    from eldistill.training import compute

    while True:
        try:
            return make(folder)
        except RuntimeError as error:
            if sentence := compute.not_repeatable(error):
                raise Problem(sentence) from error
            if not compute.out_of_memory(error) or not (smaller := _smaller(work)):
                raise
        _free_memory()
        work.machine.micro_batch = smaller
        work.say(f"the device has too little memory; continuing with {smaller} images at once")


@contextlib.contextmanager
def noting(work: Work, folder: Path, failure: type[Exception]) -> Iterator[None]:
    """Context that notes an error of this class in `folder`, the state folder of the step, and raises Problem at once where one is
    noted that the same code met on the same machine, unless the step is forced."""
    from eldistill.training import state

    code = _code(work.machine)  # of the machine before micro-batches become smaller
    if not work.force and (sentence := state.noted_failure(folder, code)):
        raise Problem(f"this step failed before: {sentence}; change its numbers, or delete {folder} to try again")
    try:
        yield
    except failure as error:
        state.note_failure(folder, str(error), code)
        raise


def _code(machine: Machine) -> str:
    # A digest of everything that may turn a failure into a success: the sources, torch, and how the machine computes.
    sources = files.digest("".join(p.read_text(encoding="utf-8") for p in sorted(PACKAGE.rglob("*.py"))))
    how = " ".join(str(getattr(machine, key)) for key in ("device", "micro_batch", *MACHINE))
    return files.digest(f"{sources} {how} {metadata.version('torch')}")


def _smaller(work: Work) -> int:
    """Half the present number of images at once; 0 if it cannot be reduced, or if several processes share the training: they must
    change together, which `launch` does."""
    now = work.machine.micro_batch or _batch(work.params)
    fewest = _group(work.params)
    return max(fewest, -(-now // 2)) if work.machine.fit and work.alone and now > fewest else 0


def _group(params: dict[str, Any]) -> int:
    """Images that must share a micro-batch: the answer of the method in a distil recipe, as the loop asks for it; 1 for all
    other trainings."""
    from eldistill import contract  # imports torch, which `tables` does without

    if "method" not in params:
        return 1
    method = contract.load_method(params["method"]["file"])
    return method.group(make_numbers(method, params["method"]))


def _free_memory() -> None:
    # Networks of the failed attempt are in reference cycles, which only the garbage collector frees.
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
