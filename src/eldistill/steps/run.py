# SPDX-License-Identifier: Apache-2.0
"""Runs one step by its name: finds its recipe, its inputs and its outputs, calls the room that makes it.

By hand (`python -m eldistill distil digits/di/el/0`) the recipe is computed from params.yaml; a Snakemake rule
passes the file. Both are the same text, so both are the same run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

from eldistill import files
from eldistill.errors import NonFinite, Problem
from eldistill.paths import PACKAGE, SCRATCH
from eldistill.plan import identity, params, records
from eldistill.plan.identity import Identities
from eldistill.plan.recipes import REMADE, Plan, Step

COVERED_BY = "evaluate"
RUN_LOG = f"{SCRATCH}/run-log.jsonl"


def run(
    word: str, name: str, recipe_file: str | None = None, force: bool = False, max_minutes: float = 0, say=print, rank: int | None = None,
) -> bool:  # fmt: skip
    """Make `word name` in the current folder; False if it was fresh already. Raises Problem and what the room raises.

    rank: of this process, where several share a training: the first one speaks and writes, the others compute.
    """
    # A rule passes a recipe whose sources the driver has measured.
    plan = Plan(params.load(), Identities(measured=not recipe_file))
    step = plan.find(word, name)
    first = not rank
    if rank is not None and not (_trains(step) or _measures(step)):
        raise Problem(f"{word} {name} is made by one process; leave --processes away")
    say = say if first else lambda line: None
    if recipe_file and not Path(recipe_file).is_file():
        raise Problem(f"{recipe_file} is missing; leave --recipe away to compute it from params.yaml")
    text = Path(recipe_file).read_text(encoding="utf-8") if recipe_file else step.recipe
    if not force and text == step.recipe and step.fresh(Path()):
        plan.identities.record()
        say(f"{step.word} {step.name} is up to date; --force makes it again")
        return False
    if mirror := plan.params.top("mirror"):
        os.environ.setdefault("ELDISTILL_MIRROR", mirror)
    recipe = json.loads(text)
    above = [plan.find(*upstream.split(" ", 1)) for upstream in recipe["upstream"]]
    for each in above:
        missing = [output for output in each.outputs if not Path(output).exists()]
        if missing:
            raise Problem(
                f"{missing[0]} is missing; run `python -m eldistill {each.word} {each.name}` first, or `snakemake all`"
            )
    for each, wanted in zip(above, recipe["upstream"].values(), strict=True):
        # Existing is not enough: a student of another teacher must not get this recipe.
        if not Path(each.sidecar).exists() or files.digest(Path(each.sidecar).read_text(encoding="utf-8")) != wanted:
            raise Problem(
                f"{each.outputs[0]} was not made by the numbers that this step asks for; "
                f"run `python -m eldistill {each.word} {each.name}` first, or `snakemake all`"
            )
        if each.word in REMADE and (edited := each.changed(Path())):
            raise Problem(
                f"{edited[0]} changed since its step made it; run `python -m eldistill {each.word} {each.name}` first, "
                "or `snakemake all`"
            )
    if recipe["params"].get("snapshots") != step.params.get("snapshots"):
        raise Problem("params.yaml: distil.snapshots changed since this recipe was written; run snakemake again")
    identity.check(step.sources, recipe.get("sources", {}))
    work = SimpleNamespace(
        step=step, recipe=recipe, text=text, digest=files.digest(text), params=recipe["params"], upstream=above,
        outputs=[Path(output) for output in step.outputs], site=_site(plan.params, recipe, step, max_minutes),
        say=lambda line: say(f"{step.name}  {line}"), plan=plan, state=None, force=force, first=first,
        alone=rank is None,
    )  # fmt: skip
    if first:
        files.append_line(
            RUN_LOG,
            files.canonical({"time": round(time.time(), 3), "word": word, "name": step.name, "recipe": work.digest}),
        )
        for output in (*step.outputs, step.sidecar):
            files.remove_leftovers(output)
    _threads(work.params.get("threads", plan.threads), word)
    # A distil run has its outputs untouched until it publishes them.
    with contextlib.nullcontext() if word == "distil" or not first else _overwriting(step):
        MAKERS[word](work)
        if word == "data" or takes_over(step):  # which read them to their end
            identity.check(step.sources, recipe.get("sources", {}))
    if not first:
        return True
    plan.identities.record()
    records.write(Path(), step.record, work.digest, step.outputs)
    # Last: an output without its recipe is not trusted, so a step cut short here runs again.
    files.write_text(step.sidecar, text)
    if work.state is not None:
        shutil.rmtree(work.state, ignore_errors=True)
    return True


def takes_over(step: Step) -> bool:
    """Whether a step is a teacher that others trained."""
    return step.word == "teacher" and "/" not in step.name and "n_images" not in step.params


def on_gpu(step: Step) -> bool:
    """Whether the rule of a step asks for a GPU."""
    featured = step.word == "data" and step.name.endswith("/moments-clean")
    return featured or (step.word == "teacher" and not takes_over(step)) or step.word == "distil" or _measures(step)


def _trains(step: Step) -> bool:
    return step.word == "distil" or (step.word == "teacher" and "/" not in step.name and "n_images" in step.params)


def _measures(step: Step) -> bool:
    # Of generated images, which processes can share.
    return step.word == "evaluate" and not step.name.startswith("suite/")


@contextlib.contextmanager
def _overwriting(step: Step) -> Iterator[None]:
    # While outputs are replaced an older recipe must not vouch for a mixture; if none was, it may again.
    sidecar, before = Path(step.sidecar), [_signature(output) for output in step.outputs]
    old = sidecar.read_text(encoding="utf-8") if sidecar.exists() else None
    sidecar.unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        if old is not None and [_signature(output) for output in step.outputs] == before:
            with contextlib.suppress(OSError):
                files.write_text(sidecar, old)
        raise


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _threads(threads: int, word: str) -> None:
    if word != "tables":
        import torch

        from eldistill.training import compute as speed

        speed.keep_memory()
        torch.set_num_threads(threads)
        # float32 means float32, and equal seeds equal bits, as far as cuDNN offers it.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


MACHINE = ("channels_last", "recompute", "compile", "tf32", "deterministic", "benchmark")  # of the section distil


def _site(values: params.Params, recipe: dict, step: Step, max_minutes: float) -> SimpleNamespace:
    top = values.top("distil")
    device = values.top("device")
    if step.word != "tables" and device != "cpu":
        import torch

        must = step.word in ("teacher", "distil") or (step.word == "evaluate" and not step.name.startswith("suite/"))
        if device == "cuda" and must and not torch.cuda.is_available():
            raise Problem("params.yaml: device is cuda, but torch sees no GPU; set it to auto or cpu")
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # A quarter of the time, at most five minutes, is left for the last step, saving, and starting.
    seconds = 60 * max_minutes
    return SimpleNamespace(
        device=device, micro_batch=_at_once(top, recipe), fit=top["fit"], save_seconds=top["save_seconds"],
        **{key: top[key] for key in MACHINE},
        max_seconds=seconds - min(300, seconds / 4),
        batch=values.top("evaluate")["batch"],
    )  # fmt: skip


def _at_once(top: dict, recipe: dict) -> int:
    # What a launcher found to fit on every GPU, else what params.yaml says.
    parts = int(os.environ.get("ELDISTILL_PARTS", "1"))
    if parts < 2:
        return top["micro_batch"]
    return -(-_batch(recipe["params"]) // (int(os.environ["WORLD_SIZE"]) * parts))


def _batch(params: dict) -> int:
    # Of a training: a distil recipe has it with the numbers of its method; a judge's is its own affair.
    return params.get("method", params).get("batch", 0)


def _inputs(work, ending: str) -> list[Path]:
    return [Path(output) for step in work.upstream for output in step.outputs if output.endswith(ending)]


def _train(work, train) -> None:
    """Run a training in its locked state folder; remember a failure that repeating cannot cure."""
    import torch

    from eldistill.training import state

    folder = work.state = state.folder(work.digest)
    code = files.digest("".join(p.read_text(encoding="utf-8") for p in sorted(PACKAGE.rglob("*.py"))))
    site = work.site
    machine = " ".join(str(getattr(site, key)) for key in ("device", "micro_batch", *MACHINE))
    code = files.digest(f"{code} {machine} {metadata.version('torch')}")
    with state.lock(folder) if work.first else contextlib.nullcontext():
        if not work.force and (sentence := state.failure(folder, code)):
            raise Problem(f"this run failed before: {sentence}; change its numbers, or delete {folder} to try again")
        while True:
            try:
                return train(folder)
            except NonFinite as error:
                state.remember_failure(folder, str(error), code)
                raise
            except torch.OutOfMemoryError:
                if not (smaller := _smaller(work)):
                    raise
            _forget()
            site.micro_batch = smaller
            work.say(f"the device has too little memory; going on with {smaller} images at once")


def _smaller(work) -> int:
    """Half as many images at once as now; 0 if there are no fewer, or if somebody else has to decide: of several processes
    all must change together, which `launch` does."""
    now = work.site.micro_batch or _batch(work.params)
    return -(-now // 2) if work.site.fit and work.alone and now > 1 else 0


def _forget() -> None:
    # Networks of the attempt that failed hang together in circles.
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- one function for each word -------------------------------------------------------------------------


def _data(work) -> None:
    from eldistill.data import labels, packing
    from eldistill.evaluate import evaluator as evaluate
    from eldistill.evaluate import features, judges

    item = work.step.name.rsplit("/", 1)[1]
    if work.step.on_demand:
        from eldistill.external import fetching

        path = fetching.fetch(item, say=work.say)
        files.link(path, work.outputs[0])
        work.say(f"{path}, {path.stat().st_size:,} bytes")
        return
    if item == "images":
        about = packing.pack(work.params, work.outputs[0], work.plan.folder(work.step.name.split("/")[0]), work.say)
        work.say(f"{about['train']} train and {about['heldout']} held-out images of shape {about['shape']}, "
                 f"mean {about['mean']}, std {about['std']}, sha256 {about['sha256'][:16]}")  # fmt: skip
        for line in labels.table(about["class_names"], about["class_counts"]):
            work.say(line)
        return
    (pack,) = _inputs(work, "/images.safetensors")
    if item == "moments-clean":
        from eldistill.evaluate import clean

        space = features.feature_space(clean.SPACE, None, work.site.device)
        clean.make_reference(space, pack, work.outputs[0], work.say)
        return
    if item.startswith("judge-"):

        def train(folder):
            result = judges.train(
                item[-1], work.params, pack, work.outputs[0], folder, work.digest, work.site, work.say
            )
            work.say(f"{item}: held-out accuracy {result['accuracy_heldout']}")

        _train(work, train)
        return
    name = item.removeprefix("reference-")
    judge = _inputs(work, f"/{name}.safetensors")
    space = features.feature_space(name, judge[0] if judge else None, work.site.device)
    evaluate.make_reference(space, pack, work.outputs[0])


def _teacher(work) -> None:
    from eldistill.distil import run as distil
    from eldistill.teacher import train

    if "/pairs-" in work.step.name:
        from eldistill.teacher import pairs
        from eldistill.training import state

        folder = work.state = state.folder(work.digest)
        with state.lock(folder):
            (source,) = _inputs(work, "/teacher.safetensors")
            pack = next(iter(_inputs(work, "/images.safetensors")), None)
            pairs.make(work.params, source, work.outputs[0], folder, work.site.batch, work.site.device, work.say, pack)
        return
    if work.step.name.endswith("/check"):
        from eldistill.teacher import check

        judge, reference = ([path for path in _inputs(work, ending) if path.name.startswith(start)]
                            for ending, start in ((".safetensors", "judge-"), (".npz", "reference-")))  # fmt: skip
        (source,) = _inputs(work, "/teacher.safetensors")
        pack = next(iter(_inputs(work, "/images.safetensors")), None)
        found = check.make(
            work.params, source, *(next(iter(each), None) for each in (reference, judge)), work.site, work.say, pack
        )
        files.write_json(work.outputs[0], found)
        return
    if work.params.get("source") or work.params.get("file"):
        from eldistill.teacher import convert

        here = work.plan.params.section("teacher", work.step.name)["file"]
        about = convert.adopt(work.params, work.outputs[0], here, work.say)
        files.write_rows(work.outputs[1], [])
        files.write_json(work.outputs[2], distil.origin(work.digest) | {"source": about["source"]})
        work.say(f"{work.step.name}: {about['source']['name']}, sha256 {about['source']['sha256']}, {about['config']['network']} "
                 f"for images of shape {about['shape']} and {about['label_dim']} classes")  # fmt: skip
        return
    (pack,) = _inputs(work, "/images.safetensors")

    def make(folder):
        done = train.train(work.params, pack, work.outputs[0], folder, work.digest, work.site, work.say)
        if not work.first:
            return
        files.write_rows(work.outputs[1], done.rows)
        files.write_json(work.outputs[2], distil.provenance(done, work.digest, work.site.device))

    _train(work, make)


def _ensemble(work) -> None:
    from eldistill.data import dataset as data
    from eldistill.ensemble import seed

    (pack,) = _inputs(work, "/images.safetensors")
    reals = data.reals(pack, work.params["codec"], False)
    section = {key: value for key, value in work.params.items() if key not in ("codec", "seed")}
    teacher = None
    if taught := _inputs(work, "/teacher.safetensors"):
        from eldistill.teacher import train

        teacher, _ = train.load(taught[0])
        teacher.requires_grad_(False).eval()
    seed.make(section, work.params["seed"], reals, *work.outputs, teacher)


def _distil(work) -> None:
    from eldistill.distil import run as distil
    from eldistill.training import compute as speed
    from eldistill.training import processes as distributed

    upstream = {"images": _inputs(work, "/images.safetensors")[0], "teacher": _inputs(work, "/teacher.safetensors")[0]}
    upstream |= distil.upstream(work.params, (Path(output) for step in work.upstream for output in step.outputs))
    upstream["start"] = next(iter(_inputs(work, "/generator_ema.safetensors")), None)

    def make(folder):
        done = distil.make(work.params, work.digest, upstream, folder, work.site, work.say, work.recipe)
        flop = None
        # It trains on: the result must not depend on it.
        with (
            speed.eager(work.site.compile),
            contextlib.suppress(NonFinite, RuntimeError, MemoryError, distributed.Lost),
        ):
            flop = done.count_flop()
        if not work.first:
            return
        about = distil.provenance(done, work.digest, work.site.device, flop)
        files.write_json(folder / "provenance.json", about)
        with _overwriting(work.step):
            distil.publish(folder, work.step.outputs, Path())

    _train(work, make)


def _evaluate(work) -> None:
    from eldistill.evaluate import evaluator as evaluate
    from eldistill.evaluate import features
    from eldistill.evaluate.metrics import CURVE
    from eldistill.sampling import generators as sampling
    from eldistill.training import processes as distributed

    if work.step.name.startswith("suite/"):
        _metrics(work)
        return
    options, batch, device = work.params, work.site.batch, work.site.device
    judge = {path.stem: path for path in _inputs(work, ".safetensors") if path.stem.startswith("judge-")}
    spaces = {name: features.feature_space(name, judge.get(name), device) for name in options["features"]}
    references = {name: evaluate.load_reference(_inputs(work, f"/reference-{name}.npz")[0]) for name in spaces}
    ruler = evaluate.Ruler(spaces, references, options, batch, distributed.processes() or distributed.Alone())
    which = work.step.name.split("/")[1:]
    real, generator, rows = which == ["real"], None, []
    drawn = _classes(work, spaces, real)
    asked = None if real else _asked_fid(work, ruler)
    if real:
        metrics = evaluate.real_row(references, options, spaces, drawn.asked)
    else:
        if which == ["teacher"]:
            images = _images_of_teacher(work, drawn)
        else:
            generator = _generator(work, _inputs(work, "/generator_ema.safetensors")[0], drawn)
            images = _images_of(work, generator)
            rows = _curve(work, ruler, drawn, asked)
        metrics = ruler.measure(images, options["n"], asked=drawn.asked)
        if generator is not None:
            for steps in [each for each in generator.about["sampler"]["steps"] if each != "1"]:
                few = ruler.measure(_images_of(work, generator, int(steps)), options["n"], CURVE)
                metrics |= {f"{name}_{steps}steps": value for name, value in few.items()}
        if asked:
            metrics |= _fid(work, ruler, images, asked)
    shown = _shown(work, drawn, None if real else images)
    if not work.first:
        return
    _save_picture(_output(work, "samples.png"), shown, options["grid"], drawn.titles)
    files.write_json(work.outputs[0], metrics)
    if generator is not None:
        from eldistill.tables import sheet as sheets

        files.write_rows(_output(work, "curve.csv"), sorted(rows, key=lambda row: row["n_images"]))
        strip = sampling.between(generator, STRIPS, options["grid"], options["seed"])
        _save_picture(_output(work, "interpolation.png"), strip, options["grid"])
        sheets.make(work.step.name, Path(), _output(work, "sheet.html"))


def _classes(work, spaces: dict, real: bool):
    # How classes are drawn and shown in an evaluation (classes.Drawn), and what is left out.
    from eldistill.data import classes

    if not work.params.get("labels"):
        return classes.Drawn()
    drawn = classes.of_pack(_pack(work), work.params, real)
    if not real:
        work.say(classes.sentence(drawn.about))
    if drawn.asked is not None and not any(
        getattr(each, "label_dim", 0) == drawn.label_dim for each in spaces.values()
    ):
        work.say(f"agreement is left out: none of {', '.join(spaces)} is a classifier of these {drawn.label_dim} classes; "
                 "judge-a under evaluate.features is one")  # fmt: skip
        return classes.without_asked(drawn)
    return drawn


def _pack(work) -> Path:
    # The images of an evaluation's data setting; for real latents, and where there are no others, those of their pixels.
    found, own = _inputs(work, "/images.safetensors"), work.plan.pack(work.step.name.split("/")[0]).outputs[0]
    return Path(own) if Path(own) in found else found[0]


def _generator(work, path: Path, drawn):
    from eldistill.sampling import generators as sampling

    found = sampling.load_generator(path, work.site.device)
    return sampling.Generator(found.network, drawn.applied(found.about))


def _images_of_teacher(work, drawn):
    from eldistill.sampling import generators as sampling
    from eldistill.teacher import train

    options = work.params
    teacher, about = train.load(_inputs(work, "/teacher.safetensors")[0], work.site.device)
    about = drawn.applied(about)

    def images(n, start=0, labels=None):
        return sampling.images_of_teacher(
            teacher, about, n, options["steps"], options["seed"], work.site.batch, first=start, labels=labels
        )

    return images


def _shown(work, drawn, images):
    # What samples.png shows, uint8 [n, c, h, w]: the first images, or a row of each class; images: None for real ones.
    from eldistill.data import classes
    from eldistill.data import dataset as data

    columns, dim = work.params["grid"], drawn.label_dim
    if images is None:
        real, labels, _ = data.load(_pack(work), "heldout")
        return classes.first_of_each(real, labels, dim, columns) if dim else real[: columns**2]
    labels = classes.row_labels(dim, columns) if dim else None
    return _joined(images(columns**2 if labels is None else len(labels), labels=labels))


def _metrics(work) -> None:
    from eldistill.evaluate import evaluator as evaluate
    from eldistill.tables import results, summary

    metrics = {step.name: results.read_metrics(Path(step.outputs[0])) for step in work.upstream}
    runs: summary.Runs = {}
    for step in work.upstream:
        *arm, seed = step.name.split("/")
        if len(arm) == 3:  # no yardstick
            curve = files.read_rows(Path(step.outputs[1]))
            runs.setdefault(tuple(arm), {})[seed] = summary.Evaluation(metrics[step.name], curve)
    files.write_json(
        _output(work, "metrics.json"), summary.summary(runs, work.params["primary"], work.params["baseline"])
    )
    files.write_json(_output(work, "metrics-all.json"), evaluate.nest(metrics))


STRIPS = 4  # rows of an interpolation


def _joined(chunks):
    import torch

    return torch.cat(list(chunks))


def _output(work, name: str) -> Path:
    return next(path for path in work.outputs if path.name == name)


def _images_of(work, generator, steps: int = 1):
    from eldistill.sampling import generators as sampling

    def images(n, start=0, labels=None):
        return sampling.images_of(generator, n, work.params["seed"], labels, work.site.batch, steps, start)

    return images


def _curve(work, ruler, drawn, asked) -> list[dict]:
    from eldistill.evaluate.metrics import CURVE

    options, rows = work.params, []
    followed = options.get("curve_features") or list(ruler.spaces)
    for path in _inputs(work, ".safetensors"):
        if path.name.startswith("ema-"):
            snapshot = _generator(work, path, drawn)
            seen = snapshot.about["n_images_before"] + snapshot.about["n_images"]
            row = ruler.measure(_images_of(work, snapshot), options["curve_n"], CURVE, followed)
            if asked and options["fid"].get("curve_n"):
                row |= ruler.fid_on_the_way(_images_of(work, snapshot), *asked)
            rows.append({"n_images": seen, **row})
            work.say(
                f"{path.name}: {seen} images, " + "  ".join(f"{k} {v:.4g}" for k, v in list(rows[-1].items())[1:3])
            )
    return rows


def _asked_fid(work, ruler) -> tuple | None:
    # What the figure needs that published ones may stand beside: feature space, reference, end of its name; None if evaluate.fid
    # does not ask for it.
    if not (wanted := work.params.get("fid")):
        return None
    from eldistill.evaluate import fid, metrics
    from eldistill.external import fetching

    name = wanted["reference"]
    path = Path(name) if Path(name).suffix else fetching.fetch(name, say=work.say)
    mean, cov = fid.statistics(path)
    return _space(work, ruler, "inception"), (mean, cov, metrics.root(cov)), f"inception_{fid.whose(name)}"


def _space(work, ruler, name: str):
    from eldistill.evaluate import features

    return ruler.spaces.get(name) or features.feature_space(name, None, work.site.device)


def _fid(work, ruler, images, asked: tuple) -> dict[str, float]:
    from eldistill.evaluate import clean

    cleanly = None
    if work.params["fid"].get("clean"):
        cleanly = _space(work, ruler, clean.SPACE), clean.load_reference(_inputs(work, "/moments-clean.npz")[0])
    found = ruler.fid(images, *asked, cleanly)
    work.say("  ".join(f"{key} {value:.4g}" for key, value in found.items()))
    return found


def _save_picture(path: Path, images, columns: int, titles: list[str] | None = None) -> None:
    from eldistill.data import classes
    from eldistill.sampling import generators as sampling

    board = sampling.grid(images, columns, max(1, 32 // images.shape[-1]))
    with files.atomic(path) as temporary:
        (classes.beside(board, titles) if titles else board).save(temporary, format="PNG")


def _tables(work) -> None:
    from eldistill.tables import report
    from eldistill.tables import suite as tables
    from eldistill.tables.studies import page as studies

    if "/" in work.step.name:
        studies.make(work.step.name.split("/")[1], work.params, Path(), work.outputs)
        return
    *parts, page = work.outputs
    tables.make(work.params, Path(), parts)
    count = Counter(step.word for step in work.plan.suite(work.step.name).values() if not step.on_demand)
    report.make(work.step.name, work.params | {"steps": count}, Path(), {path.name: path for path in parts}, page)


MAKERS = {
    "data": _data,
    "teacher": _teacher,
    "ensemble": _ensemble,
    "distil": _distil,
    "evaluate": _evaluate,
    "tables": _tables,
}
