# SPDX-License-Identifier: Apache-2.0
"""One message for all files of a folder or zip that a reader cannot take, so that they are repaired in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from eldistill.data.containers import Container, open_container
from eldistill.errors import Problem

COVERED_BY = "folders"
MOST_SHOWN = 20  # files that a message names

Examine = Callable[[Container, str], object]  # reads one file to its end; raises Problem if it cannot be taken


@contextmanager
def listing_all(
    path: Path, names: Sequence[str], examine: Examine, conclude: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Context of reading some of `names`. After the first Problem all of them are examined, and the Problem that is raised lists
    all. conclude: called after that; raises Problem for faults of the files together, which are added to the list.

    Without a Problem nothing is read twice."""
    try:
        yield
    except Problem as first:
        bad = list(_sentences(path, names, examine))
        try:
            conclude()
            also = []
        except Problem as problem:
            also = [str(problem).removeprefix(f"{path}: ")]
        if not bad or len(bad) + len(also) < 2:
            raise
        more = [f"and {len(bad) - MOST_SHOWN:,} more"] if len(bad) > MOST_SHOWN else []
        start = f"{path}: {len(bad):,} of {len(names):,} files cannot be taken: {bad[0]}"
        raise Problem("; ".join([start, *bad[1:MOST_SHOWN], *more, *also])) from first


def _sentences(path: Path, names: Sequence[str], examine: Examine) -> Iterator[str]:
    with open_container(path) as container:
        for name in names:
            try:
                examine(container, name)
            except Problem as problem:
                yield str(problem).removeprefix(f"{path}: ").removeprefix(f"{path}/")
