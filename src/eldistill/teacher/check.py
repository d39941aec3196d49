# SPDX-License-Identifier: Apache-2.0
"""Measures the samples of a teacher before anything is distilled from it, to see whether it is what it claims to be.

A published network is measured as its authors did: many images by Heun's method, features of Inception, their reference
statistics, beside their figure. One that was trained here is measured in the features of a judge. The same measure is
applied to published students by `python -m eldistill check NAME`.
"""

from __future__ import annotations

import re
from pathlib import Path

from eldistill.data import classes
from eldistill.errors import Problem
from eldistill.evaluate import features, metrics
from eldistill.evaluate.fid import reference_label, statistics, streamed
from eldistill.evaluate.references import load_reference
from eldistill.external import fetching
from eldistill.sampling.teachers import images_of_teacher
from eldistill.training.machine import Machine

RECIPE = ("teacher/check", 1)
ENOUGH = 50_000  # images of a published figure; fewer give another distance


def verdict(found: float, count: int, name: str, published: str, limit: float) -> dict:
    """The figure `name` beside what is published ("fid 1.97, 35 calls"), and whether they agree: None where there is
    nothing to compare, because nothing is published or for fewer images than that was made of."""
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
    """What the verdict says."""
    text = f"{name} {about[name]:.4g} of {about['n']} images"
    if about["published"] is None:
        return f"{text}; nothing is published to compare it with"
    text += f", published {about['published_as']}"
    return (
        text
        if about["agrees"] is not None
        else f"{text}; {ENOUGH} images and Inception's features would compare with it"
    )


def make(
    params: dict,
    teacher: Path,
    reference: Path | None,
    judge: Path | None,
    machine: Machine,
    say,
    pack: Path | None = None,
) -> dict:
    """The check of a teacher.

    params: n, steps, churn, seed, features, reference, limit, published. reference: features of the train images, for
    `features` other than inception. pack: those images, by whose labels the classes of a conditional teacher are drawn; where
    it is compared with a published figure it is None, and each class is drawn equally often, as its authors did. Raises
    Problem if a published network is not what is published.
    """
    from eldistill.sampling import teachers

    network, about = teachers.load(teacher, machine.device)
    network.requires_grad_(False).eval()
    if about["label_dim"]:
        about |= classes.describe_classes(pack) if pack else {}
        say(classes.how_drawn(about))
    space = features.feature_space(params["features"], judge, machine.device)
    if params["reference"]:
        other, label = statistics(fetching.fetch(params["reference"], say=say)), reference_label(params["reference"])
    else:
        other, label = metrics.moments(load_reference(reference)["train"]), "train"
    images = images_of_teacher(
        network, about, params["n"], params["steps"], params["seed"], machine.batch, churn=params["churn"]
    )
    return measured(images, space, other, params, f"{params['features']}_{label}", say)


def measured(images, space, other, params: dict, what: str, say) -> dict:
    """The check of chunks of uint8 images [n, c, h, w]: their Fréchet distance in a feature space beside what is published.

    other: (mean [D], covariance [D, D]) of the reference. params: n, features, reference, limit, published, steps, churn, seed.
    what: end of the figure's name. Raises Problem for a reference of other features, or for a figure far above the published.
    """
    told = [0]

    def tell(count: int) -> None:
        if 10 * count // params["n"] > told[0]:
            told[0] = 10 * count // params["n"]
            say(f"{count} of {params['n']} images")

    count, mean, cov = streamed(images, space, tell)
    if mean.shape != other[0].shape:
        raise Problem(f"features have {len(mean)} numbers, the reference {len(other[0])}; they do not belong together")
    name = f"fd{metrics.count_name(count)}_{what}"
    about = verdict(metrics.frechet(mean, cov, *other), count, name, params["published"], params["limit"])
    about |= {key: params[key] for key in ("features", "reference", "steps", "churn", "seed")}
    about["sentence"] = sentence(about, name)
    say(about["sentence"])
    if about["agrees"] is False:
        raise Problem(
            f"{about['sentence']}: more than {params['limit']} times it; the file, its data setting or its number of steps is "
            "not that of its authors. Set teacher.NAME.check.limit if you want it all the same"
        )
    return about
