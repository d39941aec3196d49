# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the evaluation: generated digits in all feature spaces in one pass, compared with clean-fid, which reads files.

    python benchmarks/evaluate.py [--n 10000] [--few 2000] [--threads 2]

It needs the demo's generator and references (`make demo`). clean-fid reads the same images as PNG files, in one pass for each space,
with the same feature functions: in its default mode, which resizes every image to 299 pixels (the functions then resize it back), and
without resizing. The time of writing the files is included in both. Prints Markdown, and writes benchmarks/evaluate.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from eldistill.evaluate import evaluator as evaluate
from eldistill.evaluate import features
from eldistill.evaluate.references import load_reference, make_reference
from eldistill.sampling import generators as sampling
from eldistill.sampling.pictures import picture

RUN = "digits/di/el/0"
SLOW = "efficientnet-lite0-96"
SETS = Path("data/sets/digits")


def identity(image):
    """The function for clean-fid's hooks that leaves an image unchanged."""
    return image


def main() -> None:
    """Measure, print the table and write the JSON file."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--n", type=int, default=10_000)
    options.add_argument("--few", type=int, default=2_000)
    options.add_argument("--threads", type=int, default=2)
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    names = ("judge-a", "judge-b", "pixels", SLOW)
    spaces = {
        name: features.feature_space(name, SETS / f"{name}.safetensors" if "judge" in name else None) for name in names
    }
    with tempfile.TemporaryDirectory() as folder:
        make_reference(spaces[SLOW], SETS / "images.safetensors", Path(folder) / "slow.npz")
        known = {name: load_reference(SETS / f"reference-{name}.npz") for name in names[:3]}
        known[SLOW] = load_reference(Path(folder) / "slow.npz")
        generator = sampling.load_generator(f"data/runs/{RUN}/generator_ema.safetensors")
        measuring = evaluate.Evaluator(
            spaces, known, {"neighbours": 3, "neighbours_n": 2000, "n_of": {SLOW: options.few}}
        )
        parts = {}
        began = time.perf_counter()
        rows = measuring.measure(lambda n, first: sampling.images_of(generator, n, first=first), options.n)
        parts["in one pass, all metrics"] = time.perf_counter() - began
        began = time.perf_counter()
        images = torch.cat(list(sampling.images_of(generator, options.n)))
        parts["of these, making the images"] = time.perf_counter() - began
        began = time.perf_counter()
        features.embed_all(images.split(250), spaces, {SLOW: options.few})
        parts["of these, their features"] = ours = time.perf_counter() - began
        parts |= by_files(images, spaces, options.few, Path(folder))
    theirs = {
        name: parts["writing files"] + parts[name] for name in ("clean-fid, its own mode", "clean-fid, no resizing")
    }
    found = {
        "n": options.n,
        "few": options.few,
        "threads": options.threads,
        "metrics": len(rows),
        "seconds": parts,
        "images_per_second": options.n / parts["in one pass, all metrics"],
        "over_ours": {name: seconds / ours for name, seconds in theirs.items()},
    }
    print("| what | seconds |\n| --- | ---: |")
    for name, seconds in parts.items():
        print(f"| {name} | {seconds:.1f} |")
    ratios = ", ".join(f"{name}: {ratio:.1f} times as long" for name, ratio in found["over_ours"].items())
    print(
        f"\n{options.n} images ({options.few} in {SLOW}), {len(rows)} numbers, {found['images_per_second']:.0f} images/s. {ratios}"
    )
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def by_files(images: torch.Tensor, spaces: dict, few: int, folder: Path) -> dict[str, float]:
    """Seconds that clean-fid takes in both modes: writing PNG files, then a pass over them for each space."""
    from cleanfid import fid

    found, side = {}, images.shape[-1]
    for part, count in (
        ("few", few),
        ("all", len(images)),
    ):  # clean-fid has no option for a part of a folder, so that the few images get their own folder
        began = time.perf_counter()
        (folder / part).mkdir()
        for index, image in enumerate(images[:count]):
            picture(image).save(folder / part / f"{index:06d}.png")
        found["writing files"] = time.perf_counter() - began
    for mode, hooks in (
        ("clean-fid, no resizing", {"custom_fn_resize": identity, "custom_image_tranform": identity}),
        ("clean-fid, its own mode", {}),
    ):
        began = time.perf_counter()
        for name, space in spaces.items():

            def extractor(batch, space=space):
                small = torch.nn.functional.interpolate(batch[:, :1], (side, side), mode="area")
                return space(small.round().to(torch.uint8))

            fid.get_folder_features(
                str(folder / ("few" if name == SLOW else "all")), extractor, num_workers=0, batch_size=250,
                device=torch.device("cpu"), verbose=False, **hooks,
            )  # fmt: skip
        found[mode] = time.perf_counter() - began
    return found


if __name__ == "__main__":
    main()
