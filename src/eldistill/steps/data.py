# SPDX-License-Identifier: Apache-2.0
"""The steps of the word `data`: fetch a file, pack images, train a judge, compute a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eldistill import files
from eldistill.external import fetching
from eldistill.plan.plan import Plan
from eldistill.plan.recipes import Step
from eldistill.steps.work import Work, run_training

COVERED_BY = "evaluate"
FEW_HELDOUT = 200  # images: below it the page of a data set warns
FAR_MEAN, FAR_STD = 1.5, (0.125, 1.5)  # of encoded images: beyond these the codec cannot be meant for them


def make_step(work: Work) -> None:
    """Make the outputs of this step. Raises Problem, and NonFinite or Stopped where it trains."""
    MAKERS[work.step.kind](work)


def _download(work: Work) -> None:
    path = fetching.fetch(work.step.item, say=work.say)
    files.link(path, work.outputs[0])
    work.say(f"{path}, {path.stat().st_size:,} bytes")


def _images(work: Work) -> None:
    from eldistill.data import packing

    about = packing.pack_dataset(
        work.params, work.outputs[0], work.plan.folder(work.step.data), work.say, _conditional(work)
    )
    for line in described(about, work.plan.data(work.step.data)):
        work.say(line)


def _conditional(work: Work) -> list[str]:
    # The data settings with `labels: true` that share these packed images.
    return [name for name in work.plan.sharing(work.step.data) if work.plan.data(name)["labels"]]


def described(about: dict[str, Any], setting: dict[str, Any]) -> list[str]:
    """Lines for a person about a packed data set. about: its description. setting: its resolved data setting."""
    from eldistill.data import labels

    lines = [f"{about['train']} train and {about['heldout']} held-out images of shape {about['shape']}, "
             f"mean {about['mean']}, std {about['std']}, sha256 {about['sha256'][:16]}"]  # fmt: skip
    if about["heldout"] < FEW_HELDOUT:
        lines.append(
            f"{about['heldout']} held-out images are few: distances to fewer than {FEW_HELDOUT} images mean little"
        )
    lines += _encoding(about, setting["codec"])
    lines += labels.class_table(about["class_names"], about["class_counts"])
    if about["class_names"] and not setting["labels"]:
        lines.append("networks do not see these classes; `labels: true` in the data setting makes them conditional")
    return lines


def _encoding(about: dict[str, Any], codec: dict[str, Any]) -> list[str]:
    # A line if the codec gives networks images that are far from what they are made for: mean 0 and deviation 0.5.
    means, stds, wanted, units = (
        each if isinstance(each, list) else [each]
        for each in (about["mean"], about["std"], codec["mean"], codec["std"])
    )
    if not max(stds):
        return ["all pixels are equal, so that there is nothing to learn from these images"]
    encoded = [(0.5 * (m - w) / u, 0.5 * s / u) for m, s, w, u in zip(means, stds, wanted, units, strict=False)]
    mean, std = max(
        encoded, key=lambda each: max(abs(each[0]) / FAR_MEAN, each[1] / FAR_STD[1], FAR_STD[0] / max(each[1], 1e-9))
    )
    if abs(mean) <= FAR_MEAN and FAR_STD[0] <= std <= FAR_STD[1]:
        return []
    return [
        f"codec: networks see them with mean {mean:.3g} and deviation {std:.3g}, and are made for about 0 and 0.5; "
        f"`codec: {{mean: {about['mean']}, std: {about['std']}}}` gives that"
    ]


def summary(step: Step, plan: Plan) -> list[str]:
    """What making a step of this word printed, read back from what it made: lines for packed images, nothing for others."""
    if step.kind != "images":
        return []
    from eldistill.tensors import map_tensors

    return described(map_tensors(step.outputs[0])[1], plan.data(step.data))


def _judge(work: Work) -> None:
    from eldistill.evaluate import judges
    from eldistill.tables import judged

    def make(folder: Path) -> None:
        result = judges.train_judge(
            work.step.item, work.params, work.input("images"), work.outputs[0], folder, work.digest, work.machine, work.say
        )  # fmt: skip
        work.say(f"{work.step.role}: learned {judged.learned(result)}; held-out accuracy {judged.accuracy(result)}")

    run_training(work, make)


def _reference(work: Work) -> None:
    from eldistill.evaluate import features, references

    space = features.feature_space(work.step.item, work.optional(work.step.item), work.machine.device)
    references.make_reference(space, work.input("images"), work.outputs[0])


def _moments(work: Work) -> None:
    from eldistill.evaluate import clean, features

    space = features.feature_space(clean.SPACE, None, work.machine.device)
    clean.make_clean_reference(space, work.input("images"), work.outputs[0], work.say)


MAKERS = {"download": _download, "images": _images, "judge": _judge, "reference": _reference, "moments": _moments}
