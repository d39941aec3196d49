# SPDX-License-Identifier: Apache-2.0
"""Conversion of a network of any supported file format to a teacher of this project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from eldistill import networks
from eldistill.data import latents
from eldistill.errors import Problem
from eldistill.external import fetching, pickles, sources
from eldistill.outside import check_file, locate
from eldistill.sampling import teachers
from eldistill.teacher import agree, ddpm, edm, guided, plain
from eldistill.teacher.agree import PIXELS
from eldistill.tensors import load_tensors, save_tensors

RECIPE = ("teacher/convert", 1)


def load_published(path: Path, sha256: str | None = None) -> tuple[torch.nn.Module, dict | None]:
    """Load a published network from a pickle of EDM or EDM2, or from a state of OpenAI's consistency models or of DMD2.

    Returns the network, frozen and in float32, and the constants {scale, bias} of its latents, or None if it has none. sha256: the
    digest that the file must have. Raises Refused for any other file."""
    path = check_file(path, "a network file")
    constants, class_name = None, ""
    if (guided.is_state(path) or path.suffix == ".safetensors") and (found := plain.load_plain(path)) is not None:
        agree.check_digest(path, sha256)
        config, tensors = found
    elif guided.is_state(path):
        config, tensors, _ = guided.read_state(path, sha256)
    else:
        with pickles.read_network_file(path, sha256) as file:
            found = file.network()
            class_name = found.class_name
            config, tensors, constants = edm.check_network(found), found.state(), edm.codec_of(file)
    network = networks.build(config)
    network.load_state_dict(tensors)
    if class_name == "ECMPrecond":
        network.boundary = network.sigma_min
    return network.requires_grad_(False).eval(), constants


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    # A reader says what it expected; that the file is something else, which is known, says more.
    try:
        yield
    except Problem as error:
        what = plain.explain_file(path)
        raise (Problem(f"{path} {what}") if what else error) from None


def convert_teacher(params: dict, output: Path, here: str | None = None, say=print) -> dict:
    """Write the teacher of a section that has `source` or `file`, and return its description.

    A file of this project is copied; any other one is converted. params: source or file; codec and labels of its data; optionally
    sha256, and `state`, the settings that a state of OpenAI's code does not contain. here: path of a copy of the file of `source`,
    which is then not downloaded. Raises Problem if the network is not supported or does not match its data; nothing is written then.
    """
    codec, wanted, licence = params["codec"], params.get("sha256"), None
    if params.get("source"):
        row = sources.source_row(params["source"])
        if row["kind"] != "teacher":
            raise Problem(
                f"{params['source']} of data/sources.csv is of the kind {row['kind']}; expected a teacher, which denoises all noise "
                f"levels: `python -m eldistill check {params['source']}` measures a student"
            )
        licence, wanted = row["licence"], wanted or row["sha256"] or None
        path = locate(here) if here else fetching.fetch(params["source"], say=say)
    else:
        path = locate(params["file"])
    if not path.is_dir():
        check_file(path, "a network file")
    if params.get("state") and not guided.is_state(path):
        raise Problem(
            f"{path} is not a state of OpenAI's consistency models; remove `state`, which only these files need"
        )
    if path.is_dir() or path.suffix != ".safetensors":
        if codec != PIXELS and (path.is_dir() or guided.is_state(path) or not latents.is_latent(codec)):
            raise Problem(
                f"{path} was trained on pixels on [-1, 1], but its data setting has codec {codec}; set it to mean: 0.5, std: 0.25"
            )
        if path.is_dir():
            return ddpm.convert_folder(path, output, wanted, params["labels"])
        if guided.is_state(path):
            with _explained(path):
                return guided.convert_state(path, output, wanted, licence, params["labels"], params.get("state"))
        return edm.convert_pickle(path, output, wanted, licence, params["labels"], codec)
    with _explained(path):
        _, about = teachers.load_denoiser(path)  # raises Problem if the file holds no teacher
    digest = agree.check_digest(path, wanted)
    if about["codec"] != codec:
        raise Problem(
            f"{path} was trained with codec {about['codec']}, but its data setting has {codec}; set the codec to the first one"
        )
    agree.check_labels(path, about["label_dim"], params["labels"])
    about |= {"source": about.get("source") or {"name": path.name, "sha256": digest}}
    save_tensors(output, load_tensors(path)[0], about)
    return about
