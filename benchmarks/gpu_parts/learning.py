# SPDX-License-Identifier: Apache-2.0
"""The part `learning`: distillations with the numbers of params.yaml, and their quality over generated images and over seconds.

It needs files of the demo that are copied along. Quality is the Fréchet distance of 2,000 images to the held-out and to the train
images, in pixels and, if its file exists, in the features of judge-a. Images are made from the snapshots after the end of a run, so
that the seconds of a curve do not include them.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from pathlib import Path

from eldistill.data import dataset as data
from eldistill.distil import run as distil
from eldistill.ensemble import seed as ensembles
from eldistill.errors import Stopped
from eldistill.evaluate import gaussians
from eldistill.evaluate.features import chunks, embed_all, feature_space
from eldistill.plan.plan import Plan
from eldistill.sampling import generators as sampling
from eldistill.sampling import teachers
from eldistill.sampling.teachers import images_of_teacher
from eldistill.steps import work
from eldistill.tensors import save_tensors
from eldistill.training.machine import Machine
from gpu_parts import small
from gpu_parts.items import Item, LeftOut

SNAPSHOTS = [0, 1, 2, 3, 5, 7, 10, 20, 35, 50, 75, 100]  # in percent of a run
IMAGES = 2000
FASTER = 4  # factor on the learning rates of the last runs
EVALUATION = 0.3  # fraction of the time of a run for the images of its snapshots; unused time goes to the next item


def items(options) -> list[Item]:
    """The teacher, then {di, dmd} x {none, el}, then the control pixel-mmd, then the first four with higher learning rates."""
    runs = [(method, supplement, 1) for method in ("di", "dmd") for supplement in ("none", "el")]
    runs += [(method, "pixel-mmd", 1) for method in ("di", "dmd")]
    runs += [(method, supplement, FASTER) for method, supplement, _ in runs[:4]]
    bench: list[Bench] = []

    def prepared() -> Bench:
        if not bench:
            bench.append(Bench(options))
        return bench[0]

    # The first four runs share most of the time. A run ends when its number of images is reached, and leaves the rest of its time.
    return [
        Item("teacher", lambda _: prepared().teacher_row(), 0.3),
        *(
            Item(
                f"{method}/{supplement}" + (f", rates x {factor}" if factor != 1 else ""),
                lambda seconds, run=(method, supplement, factor): prepared().run(*run, seconds),
                4.0 if place < 4 else 1.0,
                1.5,
            )
            for place, (method, supplement, factor) in enumerate(runs)
        ),
    ]


class Bench:
    """The files of the demo, and the feature spaces in which images are compared."""

    def __init__(self, options):
        self.options, self.plan = options, Plan(options.settings)
        self.images, self.teacher, self.judge = toys(options) if options.toy else self._carried()
        values = options.settings.section("data", options.data)
        self.codec, self.labels = values["codec"], values["labels"]
        spaces = {"pixels": feature_space("pixels")}
        if self.judge is not None:
            spaces = {"judge-a": feature_space("judge-a", self.judge, options.device), **spaces}
        self.spaces = spaces
        self.n = 64 if options.toy else IMAGES
        self.references = {}
        for part in ("train", "heldout"):
            features = embed_all(chunks(data.load_pack(self.images, part)[0]), spaces)
            self.references[part] = {name: gaussians.moments(each) for name, each in features.items()}

    def _carried(self) -> tuple[Path, Path, Path | None]:
        options, name = self.options, self.options.data
        teacher = options.settings.section("data", name)["teacher"]
        images, taught, judge = (
            options.carry / step.outputs[0]
            for step in (self.plan.pack(name), self.plan.teacher(teacher), self.plan.judge(name, "a"))
        )
        missing = [str(path) for path in (images, taught) if not path.exists()]
        if missing:
            raise LeftOut(
                f"{' and '.join(missing)} not found; `make demo` makes those of digits, `--carry FOLDER` names the folder "
                "that holds data/"
            )
        return images, taught, judge if judge.exists() else None

    def quality(self, images) -> dict:
        """Fréchet distances {space_part: value} of chunks of uint8 images."""
        features = embed_all(images, self.spaces)
        return {
            f"{space}_{part}": gaussians.frechet(*gaussians.moments(each), *reference[space])
            for space, each in features.items()
            for part, reference in self.references.items()
        }

    def teacher_row(self) -> dict:
        """The row of the teacher: distances of its images (Heun, 18 steps), and of train images to held-out ones."""
        net, about = teachers.load_denoiser(self.teacher, self.options.device)
        found = self.quality(images_of_teacher(net, about, self.n, 18))
        floor = self.quality(chunks(data.load_pack(self.images, "train")[0]))
        return {"data": self.options.data, "judge": self.judge is not None, "images": self.n, "quality": found,
                "train images": {name: value for name, value in floor.items() if name.endswith("heldout")}}  # fmt: skip

    def run(self, method: str, supplement: str, factor: float, seconds: float) -> dict:
        """Run one distillation; its row has the curve: generated images, seconds of training, and distances."""
        began = time.monotonic()
        work.set_threads(self.options.threads, "distil")
        run = self.options.settings.run(f"{self.options.data}/{method}/{supplement}/0")
        recipe = copy.deepcopy(json.loads(self.plan.distil(run).recipe)["params"])
        values = recipe["method"]
        for each in ("generator", "critic"):
            values[each]["lr"] *= factor
        recipe["snapshots"] = SNAPSHOTS
        if self.options.toy:
            values["batch"], values["n_images"] = 16, 160
        upstream = {"images": self.images, "teacher": self.teacher, "pairs": {}, "ensembles": [
            self._ensemble(each["ensemble"]) for each in recipe["supplements"].values() if each.get("ensemble")
        ]}  # fmt: skip
        machine = Machine(
            device=self.options.device, save_seconds=1e9,
            max_seconds=max(1.0, (1 - EVALUATION) * seconds - (time.monotonic() - began)),
        )  # fmt: skip
        stopped = None
        with tempfile.TemporaryDirectory(dir=self.options.folder) as place:
            folder = Path(place)
            try:
                distil.train_generator(recipe, "gpu", upstream, folder, machine, lambda line: None)
            except Stopped as reason:
                stopped = str(reason)
            curve, left = self._curve(folder, values, began + seconds)
        return {"n_images": values["n_images"], "batch": values["batch"], "rates_times": factor, "stopped": stopped,
                "curve": curve, "not_judged": left}  # fmt: skip

    def _ensemble(self, name: str) -> Path:
        path = self.options.folder / f"{self.options.data}-{name}.json"
        if not path.exists():
            reals = data.load_real_images(self.images, self.codec, self.labels)
            section = self.options.settings.section("ensemble", name)
            ensembles.record_ensemble(section, 0, reals, path, path.with_suffix(".npz"))
        return path

    def _curve(self, folder: Path, values: dict, until: float) -> tuple[list[dict], list[int]]:
        # Rows of the existing snapshots, and the numbers of images of those for which no time was left. The last and the first
        # snapshot are measured first. Seconds are counted from the time of the first file, which is written before the first step.
        counts = {
            distil.snapshot_images(values["n_images"], values["batch"], percent): folder / f"ema-{percent}.safetensors"
            for percent in reversed(SNAPSHOTS)
        }
        there = sorted(count for count, path in counts.items() if path.exists())
        start, rows, left = counts[0].stat().st_mtime_ns, [], []
        for count in dict.fromkeys([there[-1], there[0], *there]):
            if len(rows) > 1 and time.monotonic() > until:
                left.append(count)
                continue
            generator = sampling.load_generator(counts[count], self.options.device)
            quality = self.quality(sampling.images_of(generator, self.n))
            seconds = (counts[count].stat().st_mtime_ns - start) / 1e9
            rows.append({"images": count, "seconds": seconds, **quality})
        return sorted(rows, key=lambda row: row["images"]), left


def toys(options) -> tuple[Path, Path, None]:
    """A small packed data set and an untrained teacher with the codec of the data setting, which only test the code."""
    values = options.settings.section("data", options.data)
    images, teacher = options.folder / "images.safetensors", options.folder / "teacher.safetensors"
    reals = small.reals_of(small.Case("di"))
    parts = {"train": slice(0, 96), "heldout": slice(96, None)}
    tensors = {f"{part}_images": reals.images[rows] for part, rows in parts.items()}
    tensors |= {f"{part}_labels": reals.classes[rows] for part, rows in parts.items()}
    save_tensors(images, tensors, {"classes": 3, "shape": [1, 8, 8]})
    net = small.teacher_of(small.Case("di"))
    about = {"config": net.config, "codec": values["codec"], "shape": [1, 8, 8], "label_dim": 0}
    save_tensors(teacher, net.state_dict(), about)
    return images, teacher, None
