# SPDX-License-Identifier: Apache-2.0
"""Reads the states of OpenAI's consistency models and of the teacher behind them (zips that torch.save writes).

torch reads the pickle in the zip with weights_only, so that nothing in it is executed. It checks neither the checksums of a
zip nor whether a record is as long as the numbers that are taken from it: a flipped bit or a record that was cut short would
become weights. Both are checked here before a number is used.
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
    """Whether a file is a zip, as torch.save writes states since 2020."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def state(
    source: Path, sha256: str | None = None, given: dict | None = None
) -> tuple[dict, dict[str, torch.Tensor], str]:
    """The configuration, the state under our names and the digest of a network of OpenAI's consistency models.

    given: what shapes do not say (see `guided.settings`). Raises Refused, one sentence, for every other or damaged file.
    """
    digest = agree.digest(source, sha256)
    try:
        theirs = _load(source)
        settings = guided.settings(theirs, given)
        outline = networks.outline({"network": "guided", **settings})
        tensors = guided.renamed(theirs, guided.Settings(**settings))
        if (found := weights.find_fault(tensors, outline.state_dict())) is not None:
            raise ValueError(f"it {found}")
    except Exception as error:  # what torch and zipfile raise for a damaged file is not written down anywhere
        text = " ".join(str(error).split())[:400]
        raise Refused(
            f"{source} is no network of OpenAI's consistency models ({text}); fetch it again, or give another"
        ) from None
    return outline.config, {name: tensors[name] for name in outline.state_dict()}, digest


def _load(source: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of torch.save, which hold floats and nothing else. Raises ValueError, and what torch raises."""
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
        raise ValueError("it is no state of floats")
    _whole(theirs.values(), records)
    return theirs


def _records(source: Path) -> list[tuple[int, int]]:
    """Where the numbers of each storage lie, (offset, bytes), ascending, after every member's checksum was found right."""
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
    """Raise ValueError unless every storage is one record, from its first byte to its last.

    The file is mapped, so that storages lie in memory as their records lie in the file.
    """
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    mapped = sorted((at, size) for at, size in storages.items() if size)
    if [size for _, size in mapped] != [size for _, size in records]:
        raise ValueError("a record of it is not as long as its numbers, or belongs to none of them")
    if any(at - mapped[0][0] != place - records[0][0] for (at, _), (place, _) in zip(mapped, records, strict=True)):
        raise ValueError("its numbers do not lie where its records do")


def convert(
    source: Path, output: Path, sha256: str | None = None, licence: str | None = None, labels: bool | None = None,
    given: dict | None = None,
) -> dict:  # fmt: skip
    """Write such a network as a teacher; returns its description. Raises Refused; then nothing is written.

    licence, labels: as in `edm.convert`. given: as in `state`.
    """
    config, tensors, digest = state(source, sha256, given)
    agree.agree_labels(source, config["label_dim"], labels)
    about = {
        "config": config, "codec": agree.PIXELS, "shape": [config["img_channels"], *[config["img_resolution"]] * 2],
        "label_dim": config["label_dim"],
        "source": {"name": source.name, "sha256": digest, "bytes": source.stat().st_size, "class": "UNetModel", "licence": licence},
    }  # fmt: skip
    save_tensors(output, tensors, about)
    return about
