# SPDX-License-Identifier: Apache-2.0
"""Reads and writes data/sources.lock.csv: the digests of files from outside, recorded when they are first seen. It is in git.

A fetched file has a row of four columns under its name in data/sources.csv: every later download must match it. A path in
params.yaml has six: how many files it has, and what they are read as; its row follows its content (eldistill.plan.identity).
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import fcntl
import io
import re
from collections.abc import Iterable
from pathlib import Path

from eldistill.errors import Problem, brief, denied
from eldistill.files import open_regular, write_text

LOCK = Path("data/sources.lock.csv")
GUARD = Path("data/scratch/sources.lock.guard")
COLUMNS = ("name", "sha256", "bytes", "noted", "files", "read_as")
FETCHED = ""  # `read_as` of a fetched file
Key = tuple[str, str]  # name and read_as


def read_rows(root: Path = Path()) -> dict[Key, dict[str, str]]:
    """{(name, read_as): row}. The first row of a key counts, and incomplete lines are ignored. Raises Problem if it is damaged."""
    found: dict[Key, dict[str, str]] = {}
    try:
        with open_regular(root / LOCK, f"`git checkout {LOCK}` restores it", newline="", encoding="utf-8-sig") as file:
            for line in csv.reader(file):
                if _whole(line):
                    row = dict(zip(COLUMNS, line, strict=False))
                    found.setdefault((row["name"], row.get("read_as", FETCHED)), row)
    except FileNotFoundError:
        pass
    except PermissionError:
        raise denied(LOCK) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{LOCK} is damaged ({brief(error)}); `git checkout {LOCK}` restores it") from None
    return found


def _whole(line: list[str]) -> bool:
    counts = line[2:3] if len(line) == 4 else line[2:5:2] if len(line) == 6 else [""]
    return bool(re.fullmatch("[0-9a-f]{64}", "".join(line[1:2]))) and all(map(str.isdigit, counts))


def add_rows(new: Iterable[dict[str, str]], root: Path = Path()) -> None:
    """Add rows; the date of `noted` is filled in. The row of a path replaces an older one, that of a fetched file does not.

    Only one process writes at a time, and the file is not written if nothing changes. Raises Problem if it is damaged."""
    guard = root / GUARD
    guard.parent.mkdir(parents=True, exist_ok=True)
    with open(guard, "a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        before = read_rows(root)
        after = dict(before)
        for row in new:
            key = (row["name"], row.get("read_as", FETCHED))
            old = after.get(key)
            if old is None or (key[1] != FETCHED and any(old[name] != value for name, value in row.items())):
                after[key] = row | {"noted": datetime.date.today().isoformat()}
        if after != before:
            write_text(root / LOCK, _text(after))


def _text(found: dict[Key, dict[str, str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for _, row in sorted(found.items()):
        # Rows of fetched files have four columns, as earlier versions of this project expect.
        writer.writerow([row[name] for name in COLUMNS if name in row])
    return out.getvalue()
