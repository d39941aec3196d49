# SPDX-License-Identifier: Apache-2.0
"""The command `check`: measures a published teacher or student as its authors did."""

from __future__ import annotations

import re
from pathlib import Path

from eldistill.data import classes, latents
from eldistill.diffusion.noise import SIGMA_DATA
from eldistill.errors import Problem
from eldistill.evaluate import features
from eldistill.evaluate.fid import load_statistics, reference_label
from eldistill.external import fetching, sources
from eldistill.sampling import generators as sampling
from eldistill.sampling.devices import check_device
from eldistill.sampling.teachers import images_of_teacher
from eldistill.teacher import agree, convert
from eldistill.teacher.check import check_images

COVERED_BY = "teacher/check"


def codec_of(name: str, found: dict | None, channels: int) -> dict:
    """The codec of a published network: that of pixels for 3 channels, otherwise that of latents.

    found: {scale, bias}, lists with one number for each channel, from the file of the network. None if the file has no such
    constants, as those of students; then 4 channels are latents of EDM2. Raises Problem for other channels."""
    known = {3: agree.PIXELS, len(latents.EDM2["mean"]): latents.EDM2}
    if found is None and channels in known:
        return known[channels]
    if found is None or len(found["scale"]) != channels:
        raise Problem(
            f"{name} makes images of {channels} channels; expected 3 (pixels in colour) or 4 (latents of EDM2)"
        )
    pairs = list(zip(found["scale"], found["bias"], strict=True))
    return {"mean": [-bias / scale for scale, bias in pairs], "std": [SIGMA_DATA / scale for scale, _ in pairs]}


def command(options, say) -> None:
    """`python -m eldistill check NAME`: a published teacher or student, by its row of data/sources.csv. Raises Problem."""
    check_device(options.device)
    row = sources.source_row(options.name)
    if row["kind"] not in ("teacher", "student"):
        raise Problem(f"{options.name} is a {row['kind']}; expected a teacher or a student of data/sources.csv")
    if row.get("form"):  # remarks about the published file
        say(f"{options.name}: {row['form']}")
    path = Path(options.file) if options.file else fetching.fetch(options.name, say=say)
    network, constants = convert.load_published(path, row["sha256"] or None)
    codec = codec_of(options.name, constants, network.img_channels)
    network.to(options.device)
    channels, side = network.img_channels, network.img_resolution
    about = {"shape": [channels, side, side], "label_dim": network.label_dim, "codec": codec}
    calls = re.search(r"(\d+) calls?", row["published"])
    if network.label_dim:  # the file does not say how frequent each class is
        say(classes.how_drawn(about))
    if row["kind"] == "student":
        start = re.search(r"sigma_init (\d+(?:\.\d+)?)", row["published"])
        sampler = {"steps": {"1": [float(start[1]) if start else 2.5]}}
        boundary = re.search(r"boundary (\d+(?:\.\d+)?)", row["published"])
        network.boundary = float(boundary[1]) if boundary else network.boundary
        generator = sampling.Generator(network, about | {"sampler": sampler})
        images, steps = sampling.images_of(generator, options.n, options.seed, batch=options.batch), 1
    else:
        steps = options.steps or (int(calls[1]) + 1) // 2
        images = images_of_teacher(network, about, options.n, steps, options.seed, options.batch)
    reference = options.reference or row["reference"]
    other = load_statistics(Path(reference) if Path(reference).suffix else fetching.fetch(reference, say=say))
    space = features.feature_space("inception", None, options.device)
    params = {"n": options.n, "features": "inception", "reference": reference, "steps": steps, "churn": None,
              "seed": options.seed, "limit": float("inf"), "published": row["published"]}  # fmt: skip
    check_images(images, space, other, params, f"inception_{reference_label(reference)}", say)
