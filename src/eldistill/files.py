# SPDX-License-Identifier: Apache-2.0
"""Reading, writing and fetching files: whole or not at all, checked, and never executed.

Tensors travel as safetensors with one metadata entry (canonical JSON), so equal content gives equal bytes.
"""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import json
import os
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm


class Problem(Exception):
    """Something the user can put right. Its text says what was found, what was expected, what to type next."""


class NonFinite(Exception):
    """A NaN or an infinity: says where, in which term, in which tensor."""


def canonical(value) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text, 1 and 1.0 too."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def digest(text: str) -> str:
    """sha256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: str | os.PathLike) -> str:
    """sha256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it at the end; removed if anything goes wrong."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: str | os.PathLike) -> None:
    """Remove temporary files of `atomic` that a killed process left beside `path`."""
    path = Path(path)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value) -> None:
    """Write readable JSON with sorted keys."""
    write_text(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike):
    """Read JSON; a missing or damaged file is a Problem."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except ValueError as error:
        raise Problem(f"{path} is not JSON ({error}); delete it and run `snakemake all`") from None


def write_rows(path: str | os.PathLike, rows: list[dict]) -> None:
    """Write a CSV whose columns are all keys of the rows in order of appearance. Floats keep every bit."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def save_tensors(path: str | os.PathLike, tensors: dict, about: dict) -> None:
    """Write tensors and a JSON-able description into one safetensors file, atomically. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        try:
            # One metadata entry only: the order of several is not fixed, and bytes must be.
            text = json.dumps(about, separators=(",", ":"), ensure_ascii=False, allow_nan=False)  # order and types kept
            save_file(flat, temporary, metadata={"eldistill": text})
        except SafetensorError as error:
            if "os error 28" in str(error) or "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path)) from None
            raise


def load_tensors(path: str | os.PathLike, foreign: bool = False) -> tuple[dict, dict]:
    """Read what `save_tensors` wrote: (tensors on the CPU, description). Nothing in the file is executed.

    foreign: take a file without our description too. Raises Problem if the file is missing, truncated or not ours.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            about = (file.metadata() or {}).get("eldistill")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run `snakemake all`, or the step that makes it") from None
    except (SafetensorError, OSError) as error:
        raise Problem(f"{path} is damaged ({error}); delete it and run `snakemake all`") from None
    if about is None and not foreign:
        raise Problem(f"{path} holds tensors but not eldistill's description; expected a file of this project")
    return tensors, json.loads(about or "{}")


def append_line(path: str | os.PathLike, text: str) -> None:
    """Add one line to a log; short appends of several processes do not mix."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text + "\n")


# --- fetching ------------------------------------------------------------------------------------------


def source(name: str, table: str | os.PathLike = "data/sources.csv") -> dict[str, str]:
    """The row of data/sources.csv called `name`."""
    if not Path(table).exists():
        raise Problem(f"{table} is missing; expected the table of what can be fetched: git restores it")
    with open(table, newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    if name not in rows:
        raise Problem(f"{name} is not in {table}; it has {', '.join(rows)}")
    return rows[name]


def fetch(name: str, folder: str | os.PathLike | None = None, store: str | os.PathLike | None = None) -> Path:
    """The file of sources.csv called `name`, with its digest checked: from `folder`, the store or upstream.

    folder: where the user already has it (any file of the right name). store: default $ELDISTILL_STORE or
    data/scratch/store. A broken download is continued by the next call. Raises Problem.
    """
    row = source(name)
    file_name = row["url"].rsplit("/", 1)[-1]
    if folder is not None:
        path = Path(folder) / file_name
        if not path.exists():
            raise Problem(f"{path} is missing; expected {name} of data/sources.csv there, or set its folder to null")
        return _checked(path, row)
    store = Path(store or os.environ.get("ELDISTILL_STORE", "data/scratch/store"))
    path = store / f"{row['sha256'][:16]}-{file_name}"
    if not path.exists():
        store.mkdir(parents=True, exist_ok=True)
        _download(row, path.with_name(path.name + ".part"))
        os.replace(_checked(path.with_name(path.name + ".part"), row, remove=True), path)
    return _checked(path, row)


def _content_digest(path: Path) -> str:
    # The digest of a .gz file is that of its content: Debian's copies differ from upstream's in the gzip header.
    if path.suffix != ".gz" and not path.name.endswith(".gz.part"):
        return sha256(path)
    try:
        with gzip.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error):
        return "no gzip file"


def _checked(path: Path, row: dict[str, str], remove: bool = False) -> Path:
    found = _content_digest(path)
    if found != row["sha256"]:
        if remove:
            path.unlink()
        raise Problem(
            f"{path} has sha256 {found[:16]}…, expected {row['sha256'][:16]}… ({row['name']}); fetch it again"
        )
    return path


def _download(row: dict[str, str], part: Path, tries: int = 4) -> None:
    addresses = [address for address in (row["mirror"], row["url"]) if address]
    for attempt in range(tries):
        address = addresses[attempt % len(addresses)]
        start = part.stat().st_size if part.exists() else 0
        if start >= int(row["bytes"]):
            return
        request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                resumed = answer.status == 206
                with (
                    open(part, "ab" if resumed else "wb") as file,
                    tqdm(total=int(row["bytes"]), initial=start if resumed else 0, unit="B", unit_scale=True) as bar,
                ):
                    while block := answer.read(1 << 20):
                        file.write(block)
                        bar.update(len(block))
            if part.stat().st_size >= int(row["bytes"]):
                return
            # A connection that is cut ends like a file that is complete.
            reason = f"the connection ended after {part.stat().st_size} of {row['bytes']} bytes"
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            reason = error
        time.sleep(min(2**attempt, 8) if attempt + 1 < tries else 0)
    raise Problem(
        f"{row['name']} could not be fetched from {row['url']} ({reason}); "
        f"put the file into a folder and name that folder in params.yaml"
    )
