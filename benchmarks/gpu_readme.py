# SPDX-License-Identifier: Apache-2.0
"""Writes benchmarks/gpu/README.md with the newest results of benchmarks/gpu.py, or a note that there are none.

    python benchmarks/gpu_readme.py

Results are the JSON files in benchmarks/gpu/, named by date and device (2026-11-27-nvidia-h100.json). Results of a CPU or of toy
networks are not shown. Items that the newest run of all parts did not measure are taken from later runs of single parts on the same
device, and the page says so.
"""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "gpu"
HEAD = """# What a GPU measures

`python benchmarks/gpu_readme.py` makes this file from the newest JSON in this folder."""
NONE = """There are no results: this project has not been measured on a GPU yet. On a machine with one, run

    python benchmarks/gpu.py --minutes 9 --out DIR

which takes nine minutes (the head of that file says what to copy there first), copy `DIR/gpu-results.json` here, named by date
and device (`2026-11-27-nvidia-h100.json`), and run `python benchmarks/gpu_readme.py`."""
FAST = (  # column: key of a row, digits
    ("ms an iteration", "milliseconds", 1), ("ms of its bare passes", "bare_milliseconds", 1), ("ratio", "ratio", 2),
    ("images/s", "images_per_second", 0), ("% EL", "supplement_percent", 1), ("% noise", "noise_percent", 1),
    ("% augmentation", "augmentation_percent", 1), ("% data", "data_percent", 1), ("% optimiser", "optimiser_percent", 1),
    ("% of a matrix product", "ceiling_percent", 0), ("GiB", "memory_gib", 1),
)  # fmt: skip


def measured(folder: Path) -> list[tuple[Path, dict]]:
    """The path and content of every file that was measured on a GPU with full networks, the oldest first."""
    found = []
    for path in sorted(folder.glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        if (values.get("device") or {}).get("kind") == "cuda" and not values["asked"]["toy"]:
            found.append((values["date"], path.name, path, values))
    return [(path, values) for _, _, path, values in sorted(found, key=lambda each: each[:2])]


def newest(folder: Path) -> tuple[Path, dict] | None:
    """The newest of these files, one of all parts if there is one: its path and content; None if there is none."""
    found = measured(folder)
    whole = [each for each in found if set(PARTS) <= set(each[1]["asked"]["parts"])]
    return (whole or found or [None])[-1]


def completed(folder: Path, values: dict) -> tuple[dict, dict[str, list[str]]]:
    """The items of `values` by part, with those that only a later file of the same device measured, and {file: these items}."""
    parts = {name: dict(part.get("items", {})) for name, part in values["parts"].items()}
    added: dict[str, list[str]] = {}
    for path, later in measured(folder):
        if later["date"] <= values["date"] or later["device"]["name"] != values["device"]["name"]:
            continue
        for part, found in later["parts"].items():
            for item, row in found.get("items", {}).items():
                if row["status"] == "done" and parts.setdefault(part, {}).get(item, {}).get("status") != "done":
                    parts[part][item] = row
                    added.setdefault(path.name, []).append(f"{part}: {item}")
    return parts, added


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose first column is left-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value, digits: int) -> str:
    """A number with this many digits after the point; a dash if there is no number."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "–"


def small(check: dict, key: str) -> str:
    """A small difference of a check in exponent form; a dash if it was not measured."""
    value = check.get(key)
    return f"{value:.0e}" if isinstance(value, int | float) else "–"


def yes(check: dict) -> str:
    """Whether a check found equal bits."""
    return {True: "yes", False: "no"}.get(check.get("equal"), "–")


def right(items: dict) -> str:
    """A table of every method compared with the CPU, and sentences for the checks of EL and of a group of one process."""
    rows, lines = [], []
    for name, row in items.items():
        checks = row["checks"]
        verdict = f"differs: {', '.join(row['differs'])}" if row["differs"] else "passes"
        if "float64" not in checks:
            lines.append(f"* {name}: {verdict}.")
            continue
        exact, single, rounded = (checks.get(key, {}) for key in ("float64", "float32", "bfloat16"))
        rows.append([name, small(exact, "weights"), small(exact, "terms"), small(single, "weights"), yes(checks.get("twice", {})),
                     yes(checks.get("resumed", {})), small(checks.get("micro-batch", {}), "weights"),
                     number(rounded.get("apart_over_moved"), 3), verdict])  # fmt: skip
    head = ["training", "float64, weights", "float64, terms", "float32, weights", "equal bits twice", "after a stop", "micro-batch",
            "bfloat16", "verdict"]  # fmt: skip
    text = ("Relative differences to the CPU in float64 after a few iterations of a small network (at most 1e-9 passes for float64 "
            "and micro-batches); bfloat16: difference of images to float32, over what the iterations changed.")  # fmt: skip
    return "\n\n".join([text, table(head, rows), *(["\n".join(lines)] if lines else [])])


def fast(items: dict) -> str:
    """A table of the milliseconds of an iteration and of its parts."""
    rows = []
    for name, row in items.items():
        cut = f" ({row['micro_batch']} images at once)" if row["micro_batch"] else ""
        rows.append([name + cut, *(number(row.get(key), digits) for _, key, digits in FAST)])
    return table(["what", *(column for column, _, _ in FAST)], rows)


def sampling(items: dict) -> str:
    """A table of images per second by precision."""
    rows = [[name, *(number(row[key], digits) for key, digits in
                     (("batch", 0), ("one step, images/s", 0), ("Heun, 18 steps, images/s", 1), ("ratio", 1)))]
            for name, row in items.items()]  # fmt: skip
    return table(["precision", "batch", "one step, images/s", "Heun in 18 steps, images/s", "ratio"], rows)


def learning(items: dict) -> str:
    """A table of the distance at the start, during and at the end of every run."""
    runs = {name: row for name, row in items.items() if row.get("curve")}
    teacher = items.get("teacher", {})
    spaces = teacher.get("quality") or next(iter(runs.values()))["curve"][0]
    key = "judge-a_heldout" if "judge-a_heldout" in spaces else "pixels_heldout"
    rows = []
    for name, row in runs.items():
        last = row["curve"][-1]
        at = [
            min(row["curve"], key=lambda each, share=share: abs(each["images"] - share * row["n_images"]))
            for share in (0, 0.1, 0.5)
        ]
        end = f"{last['images']} of {row['n_images']}"
        rows.append([name, end, number(last["seconds"], 1), *(number(each[key], 2) for each in (*at, last))])
    space, part = key.split("_")
    text = f"Fréchet distance in {space} to the {part.replace('heldout', 'held-out')} images"
    if teacher:
        best, floor = (number(teacher[of][key], 2) for of in ("quality", "train images"))
        text += f"; the teacher in 18 steps has {best}, the train images {floor}"
    head = ["run", "images", "seconds", "at the start", "after 10 %", "after 50 %", "at the end"]
    return f"{text}.\n\n{table(head, rows)}"


PARTS = {
    "right": ("Agreement with the CPU", right),
    "fast": ("Time of an iteration", fast),
    "sampling": ("Sampling", sampling),
    "learning": ("Learning", learning),
}


def page(folder: Path) -> str:
    """The text of README.md."""
    found = newest(folder)
    if found is None:
        return f"{HEAD}\n\n{NONE}\n"
    path, values = found
    device = values["device"]
    commit = f", commit {values['commit'][:12]}" if values.get("commit") else ""
    about = (f"{device['name']} ({device['memory_gib']:.0f} GiB, driver {device['driver']}, CUDA {device['cuda']}), torch "
             f"{values['torch']}, Python {values['python']}{commit}, {values['date'][:10]}, `{values['command']}`, "
             f"{values['seconds']:.0f} s; all numbers are in [{path.name}]({path.name}).")  # fmt: skip
    texts = [HEAD, about]
    parts, added = completed(folder, values)
    for name, items in added.items():
        texts.append(f"Measured later, because the time was up ([{name}]({name})): {'; '.join(items)}.")
    later = {item for items in added.values() for item in items}
    for name, (title, made) in PARTS.items():
        done = {item: row for item, row in parts.get(name, {}).items() if row["status"] == "done"}
        texts += [f"## {title}", made(done) if done else "Not measured."]
    summary = values["summary"]
    for key, title in (("failed", "Failed"), ("left_out", "Left out"), ("not_reached", "Not reached")):
        rest = [each for each in summary[key] if each["item"] not in later]
        if rest:
            texts += [f"## {title}", "\n".join(f"* {each['item']}: {each['reason']}" for each in rest)]
    return "\n\n".join(texts) + "\n"


def main() -> None:
    """Write the file."""
    (FOLDER / "README.md").write_text(page(FOLDER), encoding="utf-8")


if __name__ == "__main__":
    main()
