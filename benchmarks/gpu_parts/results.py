# SPDX-License-Identifier: Apache-2.0
"""The file of results of benchmarks/gpu.py, and sentences about its items. This module does not need torch."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path


def plain(value):
    """A value that JSON can store; numbers that are not finite become text."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


class Results:
    """The file of results. It is rewritten atomically after every change."""

    def __init__(self, path: Path, begun: float, about: dict):
        self.path, self.begun = path, begun
        self.values: dict = {**about, "complete": False, "seconds": 0.0, "device": None, "parts": {}, "summary": {}}

    def part(self, name: str) -> dict:
        """The entry of a part."""
        return self.values["parts"].setdefault(name, {"items": {}})

    def write(self) -> None:
        """Write the file."""
        self.values["seconds"] = round(time.monotonic() - self.begun, 2)
        self.values["summary"] = self.summary()
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(plain(self.values), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)

    def summary(self) -> dict:
        """The number of finished items, and lists of items that failed, differ, were left out or were not reached."""
        rows = [(f"{part}: {name}", row) for part, entry in self.values["parts"].items()
                for name, row in entry["items"].items()]  # fmt: skip
        parts = [(part, entry) for part, entry in self.values["parts"].items() if entry.get("failed")]
        broken = [
            {"item": name, "reason": f"{row['reason']}: {row['type']}: {first_line(row['message'])}"}
            for name, row in rows
            if row["status"] == "failed"
        ]
        return {
            "done": sum(row["status"] == "done" for _, row in rows),
            "failed": [*({"item": part, "reason": entry["failed"]} for part, entry in parts), *broken],
            "differs": [{"item": name, "checks": row["differs"]} for name, row in rows if row.get("differs")],
            "left_out": [{"item": name, "reason": row["reason"]} for name, row in rows if row["status"] == "left out"],
            "not_reached": [
                {"item": name, "reason": row["reason"]} for name, row in rows if row["status"] == "not reached"
            ],
        }


def first_line(message: str) -> str:
    """The first line of the message of an error, at most 160 characters."""
    return (message.splitlines() or [""])[0][:160]


def sentence(part: str, name: str, row: dict) -> str:
    """The sentence that is printed about an item."""
    where, took = f"{part}: {name}", f"{row.get('seconds', 0):.1f} s"
    if row["status"] == "failed":
        return f"{where} FAILED after {took} ({row['type']}: {first_line(row['message'])})"
    if row["status"] == "done":
        return (
            f"{where} DIFFERS in {', '.join(row['differs'])}, {took}" if row.get("differs") else f"{where} done, {took}"
        )
    return f"{where} {row['status']}: {row['reason']}"
