# SPDX-License-Identifier: Apache-2.0
"""Reader of the states of OpenAI's consistency models and of their teacher, which are zips written by torch.save.

torch reads the pickle in the zip with weights_only, so that nothing in it is executed. It checks neither the checksums of the zip
nor the lengths of its records, so that a flipped bit or a truncated record would become weights. Both are checked here first.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch

from eldistill import networks
from eldistill.external import weights
from eldistill.external.opcodes import Refused
from eldistill.networks import guided
from eldistill.teacher import agree
from eldistill.tensors import save_tensors

RECIPE = ("teacher/states", 1)
LOCAL_HEADER = 30  # bytes of a member's header in the zip, before its name and its extra field


def is_state(path: Path) -> bool:
    """Whether a file is a zip, which is the format of torch.save since 2020."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


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
        text = " ".join(str(error).split())[:400]
        raise Refused(
            f"{source} is no network of OpenAI's consistency models ({text}); fetch it again, or give another file"
        ) from None
    return outline.config, {name: tensors[name] for name in outline.state_dict()}, digest


def load_floats(source: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of torch.save that holds only floats. Raises ValueError, and the exceptions of torch."""
    records = _records(source)
    theirs = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    plain = isinstance(theirs, dict) and all(
        isinstance(key, str)
        and type(each) is torch.Tensor
        and each.layout == torch.strided
        and each.dtype in weights.FLOATS
        for key, each in theirs.items()
    )
    if not plain or sum(each.nbytes for each in theirs.values()) > source.stat().st_size:
        raise ValueError("it is not a state of floats")
    _whole(theirs.values(), records)
    return theirs


def _records(source: Path) -> list[tuple[int, int]]:
    """(offset, bytes) of the numbers of each storage in the file, in ascending order. Checks the checksum of every member first."""
    found = []
    with zipfile.ZipFile(source) as archive, open(source, "rb") as file:
        members = archive.infolist()
        if any(each.compress_type != zipfile.ZIP_STORED or each.file_size != each.compress_size for each in members):
            raise ValueError("parts of it are compressed")
        if sum(each.file_size for each in members) > source.stat().st_size:
            raise ValueError("parts of it overlap")
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"the checksum of its part {ascii(bad)[:80]} is wrong")
        for each in members:
            if "/data/" in each.filename and each.file_size:
                file.seek(each.header_offset)
                name, extra = struct.unpack_from("<HH", file.read(LOCAL_HEADER), LOCAL_HEADER - 4)
                found.append((each.header_offset + LOCAL_HEADER + name + extra, each.file_size))
    return sorted(found)


def _whole(tensors: Iterable[torch.Tensor], records: list[tuple[int, int]]) -> None:
    """Raise ValueError unless every storage is exactly one record.

    The file is mapped into memory, so that storages have the same distances as their records in the file.
    """
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    mapped = sorted((at, size) for at, size in storages.items() if size)
    if [size for _, size in mapped] != [size for _, size in records]:
        raise ValueError("one of its records has another length than its numbers, or belongs to no numbers")
    if any(at - mapped[0][0] != place - records[0][0] for (at, _), (place, _) in zip(mapped, records, strict=True)):
        raise ValueError("its numbers are not at the places of its records")


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
