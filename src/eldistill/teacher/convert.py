# SPDX-License-Identifier: Apache-2.0
"""Converts a network from outside into a teacher of this project, whichever of the understood formats its file has."""

from __future__ import annotations

from pathlib import Path

import torch

from eldistill import networks
from eldistill.data import latents
from eldistill.errors import Problem
from eldistill.external import fetching, pickles, sources
from eldistill.sampling import teachers
from eldistill.teacher import agree, ddpm, edm, guided
from eldistill.teacher.agree import PIXELS
from eldistill.tensors import load_tensors, save_tensors

RECIPE = ("teacher/convert", 1)


def published(path: Path, sha256: str | None = None) -> tuple[torch.nn.Module, dict | None]:
    """The network of a published file of either kind, frozen, in float32, and the constants of its latents if it has them.
    Raises Refused."""
    if guided.is_state(path):
        config, tensors, _ = guided.state(path, sha256)
        constants = None
    else:
        with pickles.read_network_file(path, sha256) as file:
            found = file.network()
            config, tensors, constants = edm.check(found), found.state(), edm.codec_of(file)
    network = networks.build(config)
    network.load_state_dict(tensors)
    return network.requires_grad_(False).eval(), constants


def adopt(params: dict, output: Path, here: str | None = None, say=print) -> dict:
    """The teacher of a section with `source` or `file`: fetched, converted, or taken over if it is one of ours.

    params: source or file, perhaps sha256, and codec and labels of its data. here: where the file of `source` lies, if
    it need not be fetched. params may have `state`, what a state of OpenAI's code does not say. Returns the description. Raises
    Problem; then nothing is written.
    """
    codec, wanted, licence = params["codec"], params.get("sha256"), None
    if params.get("source"):
        row = sources.source_row(params["source"])
        if row["kind"] != "teacher":
            raise Problem(
                f"{params['source']} of data/sources.csv is of the kind {row['kind']}; expected a teacher, a denoiser of all noise "
                f"levels: `python -m eldistill check {params['source']}` measures a student"
            )
        licence, wanted = row["licence"], wanted or row["sha256"] or None
        path = Path(here) if here else fetching.fetch(params["source"], say=say)
    else:
        path = Path(params["file"])
    if params.get("state") and not guided.is_state(path):
        raise Problem(
            f"{path} is no state of OpenAI's consistency models; leave out `state`, which only such a file needs"
        )
    if path.is_dir() or path.suffix != ".safetensors":
        if codec != PIXELS and (path.is_dir() or guided.is_state(path) or not latents.is_latent(codec)):
            raise Problem(
                f"{path} sees pixels on [-1, 1], its data has codec {codec}; set that to mean: 0.5, std: 0.25"
            )
        if path.is_dir():
            agree.agree_labels(path, 0, params["labels"])
            return ddpm.convert(path, output, wanted)
        if guided.is_state(path):
            return guided.convert(path, output, wanted, licence, params["labels"], params.get("state"))
        return edm.convert(path, output, wanted, licence, params["labels"], codec)
    _, about = teachers.load(path)  # a teacher, or the sentence that says why not
    digest = agree.digest(path, wanted)
    if about["codec"] != codec:
        raise Problem(f"{path} was trained with codec {about['codec']}, its data has {codec}; make them equal")
    agree.agree_labels(path, about["label_dim"], params["labels"])
    about |= {"source": about.get("source") or {"name": path.name, "sha256": digest}}
    save_tensors(output, load_tensors(path)[0], about)
    return about
