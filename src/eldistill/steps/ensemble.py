# SPDX-License-Identifier: Apache-2.0
"""The steps of the word `ensemble`: draw random embedding networks and calibrate them on real images."""

from __future__ import annotations

from eldistill.data import dataset
from eldistill.ensemble import seed
from eldistill.steps.work import Work

COVERED_BY = "evaluate"


def make_step(work: Work) -> None:
    """Make the outputs of this step. Raises Problem."""
    reals = dataset.load_real_images(work.input("images"), work.params["codec"], False)
    section = {key: value for key, value in work.params.items() if key not in ("codec", "seed")}
    teacher = None
    if taught := work.optional("teacher"):
        from eldistill.sampling import teachers

        teacher, _ = teachers.load_denoiser(taught)
        teacher.requires_grad_(False).eval()
    manifest, tensors = work.outputs
    seed.record_ensemble(section, work.params["seed"], reals, manifest, tensors, teacher)
