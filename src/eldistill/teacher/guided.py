# SPDX-License-Identifier: Apache-2.0
"""Reader of the states of OpenAI's consistency models and of their teacher, which are zips written by torch.save.

external/torchfiles.py reads them: nothing in them is executed, and checksums and lengths of all records are checked, so that a
flipped bit or a truncated record cannot become weights.
"""

from __future__ import annotations

from pathlib import Path

import torch

from eldistill import networks
from eldistill.errors import brief
from eldistill.external import torchfiles, weights
from eldistill.external.opcodes import Refused
from eldistill.networks import guided
from eldistill.teacher import agree
from eldistill.tensors import save_tensors

RECIPE = ("teacher/states", 1)


def is_state(path: Path) -> bool:
    """Whether a file begins as torch.save writes it."""
    return torchfiles.is_torch_file(path)


def read_state(
    source: Path, sha256: str | None = None, given: dict | None = None
) -> tuple[dict, dict[str, torch.Tensor], str]:
    """Read a network of OpenAI's consistency models: its configuration, its tensors under the names of networks/guided.py, and the
    digest of the file.

    sha256: the digest that the file must have. given: settings that do not follow from the shapes (see `guided.settings`). Raises
    Refused for any other or damaged file.
    """
    digest = agree.check_digest(source, sha256)
    try:
        theirs = load_floats(source)
        settings = guided.settings(theirs, given)
        outline = networks.outline({"network": "guided", **settings})
        tensors = guided.renamed(theirs, guided.Settings(**settings))
        if (found := weights.find_fault(tensors, outline.state_dict())) is not None:
            raise ValueError(f"it {found}")
    except Exception as error:  # the exceptions of torch and zipfile for damaged files are not documented
        raise Refused(
            f"{source} is no network of OpenAI's consistency models ({brief(error, 400)}); fetch it again, or give another file"
        ) from None
    return outline.config, {name: tensors[name] for name in outline.state_dict()}, digest


def load_floats(source: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of torch.save that holds only floats, as views of the file. Raises Refused."""
    with torchfiles.read_torch_file(source) as file:
        theirs = torchfiles.tensors_of(file.value, file.bytes)
        if any(each.parameter or each.storage.dtype not in weights.FLOATS for each in theirs.values()):
            raise Refused("it is not a state of floats")
        return {name: each.view() for name, each in theirs.items()}


def convert_state(
    source: Path, output: Path, sha256: str | None = None, licence: str | None = None, labels: bool | None = None,
    given: dict | None = None,
) -> dict:  # fmt: skip
    """Write a network of OpenAI's consistency models as a teacher; returns its description.

    licence, labels: as in `edm.convert_pickle`. given: as in `read_state`. Raises Refused; nothing is written then.
    """
    config, tensors, digest = read_state(source, sha256, given)
    agree.check_labels(source, config["label_dim"], labels)
    about = {
        "config": config, "codec": agree.PIXELS, "shape": [config["img_channels"], *[config["img_resolution"]] * 2],
        "label_dim": config["label_dim"],
        "source": {"name": source.name, "sha256": digest, "bytes": source.stat().st_size, "class": "UNetModel", "licence": licence},
    }  # fmt: skip
    save_tensors(output, tensors, about)
    return about
