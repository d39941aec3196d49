# SPDX-License-Identifier: Apache-2.0
"""Finds the profile of Snakemake that sets a key of the configuration, for a message that names the right file."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

OPTIONS = "--config or --configfile"  # as `reading.refuse_config` begins its sentence
DEFAULT = "profiles/default"  # which Snakemake uses where none is named


def name_place(
    sentence: str, words: Sequence[str] = tuple(sys.argv), environment: Mapping[str, str] = os.environ
) -> str:
    """The sentence of `reading.refuse_config`, with the file of a profile in place of OPTIONS if that file gives the key.

    words, environment: of Snakemake's command. Another sentence is returned as it is."""
    found = re.match(rf"{OPTIONS} gives ([^\s.:\[]+)", sentence)
    if not found or any(re.match(rf"{re.escape(found[1])}\s*=", word) for word in words):
        return sentence
    for file in profile_files(words, environment):
        if _gives(file, found[1]):
            return sentence.replace(OPTIONS, f"`config:` in {file}", 1)
    return sentence


def profile_files(words: Sequence[str], environment: Mapping[str, str]) -> Iterator[Path]:
    """The files of the profiles that Snakemake reads for this command. Those that it does not find are left out."""
    from snakemake.cli import get_profile_dir

    names = [environment.get("SNAKEMAKE_PROFILE", ""), DEFAULT]
    for index, word in enumerate(words):
        option, _, value = word.partition("=")
        if option in ("--profile", "--workflow-profile"):
            names.append(value or next(iter(words[index + 1 : index + 2]), ""))
    for name in dict.fromkeys(filter(None, names)):
        if place := get_profile_dir(name):
            yield Path(place[1])


def _gives(file: Path, key: str) -> bool:
    # Whether the block `config:` of a profile names a key. It is read as text, because a profile may be a template.
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    block = re.search(r"^config:(.*(?:\n(?:[ \t#-].*)?)*)", text, re.MULTILINE)
    return bool(block and re.search(rf"(?<![\w-]){re.escape(key)}(?![\w-])\"?\s*[:=]", block[1]))
