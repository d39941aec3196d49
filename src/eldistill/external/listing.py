# SPDX-License-Identifier: Apache-2.0
"""Lists the files of a folder outside the project that are read, which depends on what the folder is read as.

The readers and the identities of sources (eldistill.plan.identity) use the same functions, so that they cannot differ: a file
that is not read, such as a README beside the images, does not change an identity. This file imports nothing heavy.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from eldistill.registry import Reader, readers

COVERED_BY = "folders"
LABELS = "dataset.json"
STEM = "diffusion_pytorch_model"  # beginning of the names that diffusers gives to files of weights
WEIGHTS = f"{STEM}.safetensors"
# A variant such as fp16 stands before the ending; a part has its number before or behind the variant.
VARIANT = re.compile(rf"{STEM}(?:\.safetensors\.index)?(\.[a-z0-9_]+)\.(?:safetensors|json)")
SHARD = re.compile(rf"{STEM}(\.[a-z0-9_]+)?-\d{{5}}-of-\d{{5}}(\.[a-z0-9_]+)?\.safetensors")
SHARD_OF_PICKLES = re.compile(r"-\d{5}-of-\d{5}")
CONFIG, SCHEDULE = "config.json", "scheduler_config.json"
# Names of files and folders that operating systems and programs leave behind, in lower case.
CLUTTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "__pycache__"}


@dataclass
class Listing:
    """The files of a folder or zip, by their names in it, with slashes.

    names: the sorted names of the files that are read. labels: the name of the table of labels, or None. hidden: files and folders
    that are ignored because of their names. others: number of other ignored files, by ending. links: ignored links, which lead
    to a folder that is read already or nowhere. odd: ignored pipes, sockets and devices.
    """

    names: list[str]
    labels: str | None = None
    hidden: list[str] = field(default_factory=list)
    others: Counter = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    def left_out(self) -> list[str]:
        """One sentence for each kind of ignored file, with their number."""
        sentences = []
        if self.hidden:
            sentences.append(f"left out: {_counted(self.hidden, 'hidden file or folder', 'hidden files or folders')}")
        if self.others:
            endings = ", ".join(f"{n} {ending or 'without an ending'}" for ending, n in sorted(self.others.items()))
            sentences.append(f"left out: files of other kinds ({endings})")
        if self.links:
            number = _counted(self.links, "link", "links")
            sentences.append(f"left out: {number}; a link is followed if it leads to a folder that is not read already")
        if self.odd:
            sentences.append(f"left out: {_counted(self.odd, 'pipe, socket or device', 'pipes, sockets or devices')}")
        return sentences


def _counted(names: list[str], one: str, several: str) -> str:
    return f"{len(names):,} {one if len(names) == 1 else several}, such as {min(names)}"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is ignored because of its name (not path): it begins with a dot or is in CLUTTER."""
    return name.startswith(".") or name.lower() in CLUTTER


def choose_files(names: Iterable[str], endings: tuple[str, ...]) -> Listing:
    """The listing of a folder or zip. names: all files in it. endings: those that are read, in lower case with a dot."""
    chosen, tables, hides, others = [], [], set(), Counter()
    for name in names:
        parts = name.split("/")
        if cut := next((i for i, part in enumerate(parts, 1) if is_hidden(part)), 0):
            hides.add("/".join(parts[:cut]))
        elif parts[-1] == LABELS:
            tables.append(name)
        elif (ending := os.path.splitext(name)[1].lower()) in endings:
            chosen.append(name)
        else:
            others[ending] += 1
    chosen.sort()
    table = next(
        (each for each in (f"{folder}{LABELS}" for folder in outer_folders(chosen)) if each in set(tables)), None
    )
    if spare := len(tables) - (table is not None):
        others[".json"] += spare
    return Listing(chosen, table, sorted(hides), others)


def outer_folders(names: list[str]) -> list[str]:
    """The folders that contain all of these sorted names, outermost first: "", then for an archive of one folder that folder
    (with a slash at its end), and so on."""
    if not names:
        return [""]
    shared = os.path.commonprefix([names[0], names[-1]])
    return [""] + [shared[: i + 1] for i, letter in enumerate(shared) if letter == "/"]


def list_folder(path: Path, endings: tuple[str, ...]) -> Listing:
    """The listing of a folder on the disk. Raises OSError if it cannot be read.

    Links to folders are followed, but each folder is read only once, so that a circle of links ends. It is listed under its
    own name rather than that of a link, otherwise under the first name."""
    links: list[str] = []
    odd: list[str] = []
    found = choose_files(_walk(path, links, odd), endings)
    found.links, found.odd = sorted(links), sorted(odd)
    return found


def image_files(path: Path, endings: tuple[str, ...]) -> list[str]:
    """Sorted names of all files that are read in a folder of images or arrays, including the table of labels."""
    found = list_folder(path, endings)
    return sorted([*found.names, *filter(None, [found.labels])])


def _walk(path: Path, lost: list[str], odd: list[str]) -> Iterator[str]:
    # Names of files, and of what is hidden; `lost` gets the links that are not followed, `odd` what is no file. Links come after
    # all folders that need none, in sorted order: what is read does not depend on the order in which a file system lists its entries.
    seen: set[tuple[int, int]] = set()
    folders, linked = [""], []
    while folders or linked:
        if not folders:
            linked.sort(reverse=True)
        start = folders.pop() if folders else linked.pop()
        about = os.stat(path / start)
        if (about.st_dev, about.st_ino) in seen:
            lost.append(start.rstrip("/"))
            continue
        seen.add((about.st_dev, about.st_ino))
        with os.scandir(path / start) as entries:
            for entry in entries:
                name, kind = start + entry.name, _kind(entry)
                if is_hidden(entry.name) or kind == "file":
                    yield name
                elif kind == "folder":
                    (linked if entry.is_symlink() else folders).append(f"{name}/")
                elif kind == "odd":
                    odd.append(name)
                elif os.path.splitext(name)[
                    1
                ]:  # a name with an ending was a file: it is listed, so that reading it fails
                    yield name
                else:
                    lost.append(name)


def _kind(entry: os.DirEntry) -> str:
    # What an entry of a folder is: a file, a folder, a link to nothing, or something odd.
    try:
        kind = "file" if entry.is_file() else "folder" if entry.is_dir() else "odd"
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return "nothing"  # a link to itself
    return "nothing" if kind == "odd" and entry.is_symlink() and not os.path.exists(entry.path) else kind


def unet_files(folder: Path) -> tuple[Path, Path | None, list[Path]]:
    """Paths of the configuration, the schedule (None if absent) and the weights of a DDPM in the format of diffusers.

    The weights are the paths that `choose_weights` gives.

    folder: that of a pipeline, or that of its UNet2DModel beside the scheduler's."""
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    places = [folder / "scheduler", folder.parent / "scheduler", folder]
    schedule = next((each / SCHEDULE for each in places if (each / SCHEDULE).exists()), None)
    return inner / CONFIG, schedule, [inner / name for name in choose_weights(weights_there(inner))]


def choose_weights(there: Iterable[str]) -> list[str]:
    """Names of the files of weights that are read among those in a folder of diffusers, best first: one file of safetensors; an
    index and its parts (shards); the same in half precision (a variant such as fp16); a pickle of torch. WEIGHTS if there are none.
    """
    there = sorted(there)
    for variant in ("", *sorted({found[1] for name in there if (found := VARIANT.fullmatch(name))})):
        single, index = f"{STEM}{variant}.safetensors", f"{STEM}.safetensors.index{variant}.json"
        if single in there:
            return [single]
        if index in there:
            return [
                index,
                *(
                    name
                    for name in there
                    if (found := SHARD.fullmatch(name)) and (found[1] or found[2] or "") == variant
                ),
            ]
    pickles = [f"{STEM}.bin", *(name for name in there if name.endswith(".bin") and not SHARD_OF_PICKLES.search(name))]
    return next(([name] for name in pickles if name in there), [WEIGHTS])


def weights_there(folder: Path) -> list[str]:
    """Sorted names of all files of weights of diffusers in a folder, in any format."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.startswith(STEM))


def autoencoder_files(folder: Path) -> tuple[Path, Path]:
    """Paths of the configuration and the weights of an autoencoder in the format of diffusers."""
    return folder / CONFIG, folder / WEIGHTS


def _flat(files: tuple[Path, Path | None, list[Path]]) -> list[Path | None]:
    return [*files[:2], *files[2]]


def _relative(paths, folder: Path) -> list[str]:
    return sorted(os.path.relpath(path, folder) for path in paths if path is not None and path.exists())


def _of_reader(reader: Reader) -> Callable[[Path, tuple[str, ...]], list[str]]:
    return lambda folder, detail: image_files(folder, reader.endings) if reader.endings else []


# What a path can be read as: the sources of data settings (the schema says `outside: source` of their path) and the other values
# of `outside` there. The names of the files that are read of a folder, none where it must be a file. detail: names of IDX files.
READ_AS: dict[str, Callable[[Path, tuple[str, ...]], list[str]]] = {
    **{name: _of_reader(each) for name, each in readers().items() if "path" in each.options},
    "network": lambda folder, detail: _relative(_flat(unet_files(folder)), folder),
    "autoencoder": lambda folder, detail: _relative(autoencoder_files(folder), folder),
    "idx": lambda folder, detail: _relative([folder / name for name in detail], folder),
    "weights": lambda folder, detail: [],
    "statistics": lambda folder, detail: [],
}


def is_path(read_as: str, value: str) -> bool:
    """Whether a value is the path of a file. `statistics` may also be the name of a row in data/sources.csv, which has no ending."""
    return read_as != "statistics" or bool(Path(value).suffix)
