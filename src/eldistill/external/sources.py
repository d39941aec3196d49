# SPDX-License-Identifier: Apache-2.0
"""The rows of data/sources.csv: which files can be fetched, from where, and which digest each must have. Nothing is fetched here."""

from __future__ import annotations

import csv
import difflib
import os
from pathlib import Path

from eldistill.errors import Problem
from eldistill.external import sourcelock

TABLE = Path("data/sources.csv")
AUTOENCODER = "sd-vae-ft-mse"  # what latents are decoded with, where params.yaml names no other


def source(name: str, table: str | os.PathLike = TABLE) -> dict[str, str]:
    """The row of data/sources.csv called `name`; its sha256 and bytes are those of data/sources.lock.csv if it has none."""
    rows = _rows(
        Path(table), f"{table} is missing; expected the table of published files: `git checkout {table}` restores it"
    )
    if name not in rows:
        close = difflib.get_close_matches(name, rows, 6, 0.4) or list(rows)[:6]
        more = f" and {len(rows) - len(close)} others" if len(rows) > len(close) else ""
        raise Problem(f"{name} is not in {table}; it has {', '.join(close)}{more}")
    trusted = noted().get(name, {}) if not rows[name]["sha256"] else {}
    return rows[name] | {key: trusted[key] for key in ("sha256", "bytes") if trusted.get(key)}


def published(names: tuple[str, ...], table: str | os.PathLike = TABLE) -> list[dict[str, str]]:
    """Those of the rows that the table has, with the digests that it says itself."""
    try:
        rows = _rows(Path(table), "")
    except Problem:  # said when it is fetched
        return []
    return [rows[name] for name in names if name in rows]


def noted() -> dict[str, dict[str, str]]:
    """What was trusted on first use, by name."""
    return {name: row for (name, read_as), row in sourcelock.rows().items() if read_as == sourcelock.FETCHED}


def _rows(path: Path, absent: str) -> dict[str, dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["name"]: row for row in csv.DictReader(file)}
    except FileNotFoundError:
        raise Problem(absent) from None
    except (KeyError, UnicodeDecodeError):
        raise Problem(
            f"{path} is damaged; expected the table of published files: `git checkout {path}` restores it"
        ) from None
