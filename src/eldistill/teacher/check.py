# SPDX-License-Identifier: Apache-2.0
"""Is a teacher what it claims to be? Its samples are measured before anything is distilled from it.

A published network is measured as its authors did: many images by Heun's method, features of Inception, their reference
statistics, beside their figure. One that was trained here is measured in the features of a judge. The same ruler is laid
to published students by `python -m eldistill check NAME`.
"""

from __future__ import annotations

import re
from pathlib import Path

from eldistill.data import classes, latents
from eldistill.errors import Problem
from eldistill.evaluate import evaluator as evaluate
from eldistill.evaluate import features, metrics
from eldistill.evaluate.fid import statistics, streamed, whose
from eldistill.external import fetching, sources
from eldistill.sampling import generators as sampling
from eldistill.teacher import agree, convert

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
    params: dict, teacher: Path, reference: Path | None, judge: Path | None, site, say, pack: Path | None = None
) -> dict:
    """The check of a teacher.

    params: n, steps, churn, seed, features, reference, limit, published. reference: features of the train images, for
    `features` other than inception. pack: those images, by whose labels the classes of a conditional teacher are drawn; where
    it is compared with a published figure it is None, and each class is drawn equally often, as its authors did. Raises
    Problem if a published network is not what is published.
    """
    from eldistill.sampling import teachers

    network, about = teachers.load(teacher, site.device)
    network.requires_grad_(False).eval()
    if about["label_dim"]:
        about |= classes.describe(pack) if pack else {}
        say(classes.sentence(about))
    space = features.feature_space(params["features"], judge, site.device)
    if params["reference"]:
        other, label = statistics(fetching.fetch(params["reference"], say=say)), whose(params["reference"])
    else:
        other, label = metrics.moments(evaluate.load_reference(reference)["train"]), "train"
    images = sampling.images_of_teacher(
        network, about, params["n"], params["steps"], params["seed"], site.batch, churn=params["churn"]
    )
    return _measured(images, space, other, params, f"{params['features']}_{label}", say)


def _measured(images, space, other, params: dict, what: str, say) -> dict:
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


def _codec(name: str, found: dict | None, channels: int) -> dict:
    # What its images are: pixels in colour, or latents with the constants of the file; students' files have none.
    known = {3: agree.PIXELS, len(latents.EDM2["mean"]): latents.EDM2}
    if found is None and channels in known:
        return known[channels]
    if found is None or len(found["scale"]) != channels:
        raise Problem(f"{name} makes images of {channels} channels; expected 3, pixels in colour, or 4, EDM2's latents")
    pairs = list(zip(found["scale"], found["bias"], strict=True))
    return {"mean": [-bias / scale for scale, bias in pairs], "std": [latents.SIGMA_DATA / scale for scale, _ in pairs]}


def command(options, say) -> None:
    """`python -m eldistill check NAME`: a published teacher or student, by its row of data/sources.csv. Raises Problem."""
    row = sources.source(options.name)
    if row["kind"] not in ("teacher", "student"):
        raise Problem(f"{options.name} is a {row['kind']}; expected a teacher or a student of data/sources.csv")
    if row.get("form"):  # what is known of the published file
        say(f"{options.name}: {row['form']}")
    path = Path(options.file) if options.file else fetching.fetch(options.name, say=say)
    network, constants = convert.published(path, row["sha256"] or None)
    codec = _codec(options.name, constants, network.img_channels)
    network.to(options.device)
    channels, side = network.img_channels, network.img_resolution
    about = {"shape": [channels, side, side], "label_dim": network.label_dim, "codec": codec}
    calls = re.search(r"(\d+) calls?", row["published"])
    if network.label_dim:  # its file does not say how often each occurs
        say(classes.sentence(about))
    if row["kind"] == "student":
        start = re.search(r"sigma_init (\d+(?:\.\d+)?)", row["published"])
        sampler = {"steps": {"1": [float(start[1]) if start else 2.5]}}
        boundary = re.search(r"boundary (\d+(?:\.\d+)?)", row["published"])
        network.boundary = float(boundary[1]) if boundary else 0.0
        generator = sampling.Generator(network, about | {"sampler": sampler})
        images, steps = sampling.images_of(generator, options.n, options.seed, batch=options.batch), 1
    else:
        steps = options.steps or (int(calls[1]) + 1) // 2
        images = sampling.images_of_teacher(network, about, options.n, steps, options.seed, options.batch)
    reference = options.reference or row["reference"]
    other = statistics(Path(reference) if Path(reference).suffix else fetching.fetch(reference, say=say))
    space = features.feature_space("inception", None, options.device)
    params = {"n": options.n, "features": "inception", "reference": reference, "steps": steps, "churn": None,
              "seed": options.seed, "limit": float("inf"), "published": row["published"]}  # fmt: skip
    _measured(images, space, other, params, f"inception_{whose(reference)}", say)
