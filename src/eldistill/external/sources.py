# SPDX-License-Identifier: Apache-2.0
"""Reads data/sources.csv, the table of files that can be fetched, with their addresses and digests. It fetches nothing."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from eldistill.errors import Problem
from eldistill.external import sourcelock
from eldistill.files import read_rows

TABLE = Path("data/sources.csv")
COLUMNS = ("name", "url", "sha256", "bytes")  # which every reader of the table uses
AUTOENCODER = "sd-vae-ft-mse"  # the autoencoder of latents, unless params.yaml names another


def source_row(name: str, table: str | os.PathLike = TABLE) -> dict[str, str]:
    """The row of data/sources.csv with this name. If it has no sha256, that of data/sources.lock.csv is filled in, with its bytes.

    Raises Problem if there is no such row, with similar names, or if the table is missing or damaged."""
    rows = _rows(
        Path(table), f"{table} is missing; expected the table of published files: `git checkout {table}` restores it"
    )
    if name not in rows:
        close = difflib.get_close_matches(name, rows, 6, 0.4) or list(rows)[:6]
        more = f" and {len(rows) - len(close)} others" if len(rows) > len(close) else ""
        raise Problem(f"{name} is not in {table}; it has {', '.join(close)}{more}")
    trusted = noted_rows().get(name, {}) if not rows[name]["sha256"] else {}
    return rows[name] | {key: trusted[key] for key in ("sha256", "bytes") if trusted.get(key)}


def published_rows(names: tuple[str, ...], table: str | os.PathLike = TABLE) -> list[dict[str, str]]:
    """The rows of those names that the table contains, with the digests in the table only; [] if it is missing or damaged."""
    try:
        rows = _rows(Path(table), "")
    except Problem:  # reported when the file is fetched
        return []
    return [rows[name] for name in names if name in rows]


def noted_rows() -> dict[str, dict[str, str]]:
    """{name: row of data/sources.lock.csv} of the files whose digests were recorded at their first download."""
    return {name: row for (name, read_as), row in sourcelock.read_rows().items() if read_as == sourcelock.FETCHED}


def _rows(path: Path, absent: str) -> dict[str, dict[str, str]]:
    rows = read_rows(path, COLUMNS, f"`git checkout {path}` restores the table of published files", absent)
    return {row["name"]: row for row in rows}
