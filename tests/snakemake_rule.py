# SPDX-License-Identifier: Apache-2.0
"""A model of the rule by which Snakemake (9.18 to 9.27) decides what runs: mtimes, remembered checksums, propagation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from eldistill.plan.recipes import Step


class Ancient(str):
    """An input that Snakemake was told to call ancient."""


@dataclass
class Job:
    """A rule applied to a step; the target rule has no outputs."""

    name: str
    inputs: list[str]
    outputs: list[str] = field(default_factory=list)
    above: dict[str, list[str]] = field(default_factory=dict)  # job: the files that are taken from it
    below: dict[str, list[str]] = field(default_factory=dict)


class Memory(dict):
    """Checksums of the inputs of each job when it ended: {job: {input: digest}}, as .snakemake/metadata has them."""

    def remember(self, job: Job, root: Path) -> None:
        """A job has ended well."""
        self[job.name] = {path: checksum(root / path) for path in job.inputs}

    def knows(self, job: Job, path: str, root: Path) -> bool:
        """Whether an input has the content that it had then."""
        return self.get(job.name, {}).get(path) == checksum(root / path)


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def graph(steps: list[Step], targets: list[Step], inputs: Callable[[Step], list[str]]) -> dict[str, Job]:
    """The jobs behind a target rule that asks for the first output and the sidecar of these steps, upstream first."""
    makers = {path: step for step in steps for path in (*step.outputs, step.sidecar)}
    jobs: dict[str, Job] = {}

    def add(step: Step) -> None:
        name = f"{step.word} {step.name}"
        if name in jobs:
            return
        job = Job(name, inputs(step), [*step.outputs, step.sidecar])
        for path in job.inputs:
            if path in makers:
                add(makers[path])
        jobs[name] = job

    for step in targets:
        add(step)
    jobs["all"] = Job("all", [path for step in targets for path in (step.outputs[0], step.sidecar)])
    for job in jobs.values():
        for path in job.inputs:
            if path in makers:
                above = jobs[f"{makers[path].word} {makers[path].name}"]
                job.above.setdefault(above.name, []).append(path)
                above.below.setdefault(job.name, []).append(path)
    return jobs


def planned(jobs: dict[str, Job], memory: Memory, root: Path) -> set[str]:
    """The names of the jobs that Snakemake runs (dag.py, update_needrun)."""
    exists = lambda path: (root / path).exists()  # noqa: E731
    mtime = lambda path: (root / path).stat().st_mtime  # noqa: E731
    oldest: dict[str, float | None] = {}
    for job in reversed(jobs.values()):
        own = min((mtime(path) for path in job.outputs if exists(path)), default=None)
        oldest[job.name] = next(
            (time for time in (own, *(oldest[name] for name in job.below)) if time is not None), None
        )

    def wants_to_run(job: Job) -> bool:
        if not job.outputs:
            return not all(map(exists, job.inputs))
        if (time := oldest[job.name]) is None:
            return False
        return any(
            exists(path) and not isinstance(path, Ancient) and mtime(path) > time and not memory.knows(job, path, root)
            for path in job.inputs
        )

    def all_below(job: Job) -> set[str]:
        found, queue = set(), [job.name]
        while queue:
            queue += [name for name in jobs[queue.pop()].below if name not in found and not found.add(name)]
        return found

    masked: set[str] = set()
    queue: list[str] = []
    for job in jobs.values():
        if job.name not in masked and wants_to_run(job):
            queue.append(job.name)
            masked |= all_below(job)  # these are not looked at any more
    visited = set(queue)
    for name in queue:  # it grows
        job = jobs[name]
        for above, paths in job.above.items():
            if above not in visited and not all(map(exists, paths)):
                visited.add(above)
                queue.append(above)
        for below, paths in job.below.items():
            if below not in visited and not all(isinstance(path, Ancient) and exists(path) for path in paths):
                visited.add(below)
                queue.append(below)
    return visited - {"all"}
