# SPDX-License-Identifier: Apache-2.0
"""Measurement of a teacher's samples before anything is distilled from it, which finds wrong files and settings early.

A published network is measured like its authors did: Heun's method, Inception features, their reference statistics; the result is
compared with the published FID. A teacher that was trained here is measured in the features of a judge.
`python -m eldistill check NAME` measures published students in the same way.
"""

from __future__ import annotations

import re
from pathlib import Path

from eldistill.data import classes
from eldistill.errors import Problem
from eldistill.evaluate import features, gaussians, metrics
from eldistill.evaluate.fid import load_statistics, measure_moments, reference_label
from eldistill.evaluate.references import load_reference
from eldistill.external import fetching
from eldistill.sampling import guidance
from eldistill.sampling.teachers import images_of_teacher
from eldistill.training.machine import Machine

RECIPE = ("teacher/check", 1)
ENOUGH = 50_000  # number of images behind published FIDs; fewer images give a larger FID


class Disagrees(Problem):
    """The teacher's distance is not the published one. Another attempt would find the same."""


def verdict(found: float, count: int, name: str, published: str, limit: float) -> dict:
    """The measured distance and the published one, and whether they agree.

    found: the distance, measured on `count` images, whose metric is called `name`. published: such as "fid 1.97, 35 calls", or "".
    limit: largest accepted ratio. `agrees` is None if the two are not comparable: nothing is published, there are fewer than ENOUGH
    images, or the features are not Inception's."""
    figure = re.search(r"fid (\d+(?:\.\d+)?)", published)
    about = {
        name: found,
        "n": count,
        "published": float(figure[1]) if figure else None,
        "published_as": published or None,
    }
    fair = figure is not None and count >= ENOUGH and "inception" in name
    return about | {"agrees": found <= limit * float(figure[1]) if fair else None}


def sentence(about: dict, name: str) -> str:
    """The verdict as a sentence."""
    text = f"{name} {about[name]:.4g} of {about['n']} images"
    if about["published"] is None:
        return f"{text}; nothing is published to compare it with"
    text += f", published {about['published_as']}"
    return (
        text
        if about["agrees"] is not None
        else f"{text}; {ENOUGH} images and Inception's features would compare with it"
    )


def check_teacher(
    params: dict,
    teacher: Path,
    reference: Path | None,
    judge: Path | None,
    machine: Machine,
    say,
    pack: Path | None = None,
    guide: Path | None = None,
    folder: Path | None = None,
) -> dict:
    """Measure the samples of a teacher and compare them with what is published; returns the description for check.json.

    params: n, steps, churn, seed, features, reference, limit, published, and guidance if it is guided (by the network in the file
    `guide`, or by itself without a label). teacher: its safetensors file. reference: file with features of the train images, if
    params["reference"] names no published statistics. judge: file of the judge, if `features` is one. pack: the images whose class
    frequencies a conditional teacher follows; None draws each class equally often, as authors do. folder: where images are stored for a
    repetition after a stop. Raises Problem if the distance is more than `limit` times the published one.
    """
    network, about = guidance.load_teacher(teacher, params.get("guidance"), guide, machine.device)
    if about["label_dim"]:
        about |= classes.describe_classes(pack) if pack else {}
        say(classes.how_drawn(about))
    space = features.feature_space(params["features"], judge, machine.device)
    if params["reference"]:
        other, label = (
            load_statistics(fetching.fetch(params["reference"], say=say)),
            reference_label(params["reference"]),
        )
    else:
        other, label = gaussians.moments(load_reference(reference)["train"]), "train"
    images = images_of_teacher(
        network,
        about,
        params["n"],
        params["steps"],
        params["seed"],
        machine.batch,
        churn=params["churn"],
        folder=folder,
    )
    return check_images(images, space, other, params, f"{params['features']}_{label}", say)


def check_images(images, space, other, params: dict, what: str, say) -> dict:
    """Measure chunks of uint8 images [n, c, h, w]: their Fréchet distance in a feature space, compared with the published one.

    other: (mean [D], covariance [D, D]) of the reference. params: n, features, reference, limit, published, steps, churn, seed.
    what: end of the metric's name. Raises Problem if the reference has another dimension D, and Disagrees if the distance is more than
    `limit` times the published one.
    """
    told = [0]

    def tell(count: int) -> None:
        if 10 * count // params["n"] > told[0]:
            told[0] = 10 * count // params["n"]
            say(f"{count} of {params['n']} images")

    count, mean, cov = measure_moments(images, space, tell)
    if mean.shape != other[0].shape:
        raise Problem(
            f"features have {len(mean)} dimensions, the reference statistics {len(other[0])}; expected the same number: "
            "set `reference` to statistics of this feature space"
        )
    name = f"fd{metrics.count_name(count)}_{what}"
    about = verdict(gaussians.frechet(mean, cov, *other), count, name, params["published"], params["limit"])
    said = ("features", "reference", "steps", "churn", "seed", "guidance")
    about |= {key: params[key] for key in said if key in params}
    about["sentence"] = sentence(about, name)
    say(about["sentence"])
    if about["agrees"] is False:
        raise Disagrees(
            f"{about['sentence']}: more than {params['limit']} times the published distance. The file, its data setting or its "
            "number of steps differs from that of its authors: correct it, or raise teacher.NAME.check.limit to accept the network"
        )
    return about
