# SPDX-License-Identifier: Apache-2.0
"""The command `export`: writes a folder with a generator's weights, settings, model card and images, and a loader that needs only
torch and safetensors."""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from eldistill import files
from eldistill.commands.card import model_card
from eldistill.commands.loader import LOADER
from eldistill.data import classes
from eldistill.errors import Problem
from eldistill.paths import PACKAGE
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.sampling import generators as sampling
from eldistill.sampling.pictures import grid
from eldistill.tables import citations
from eldistill.tensors import load_tensors

if TYPE_CHECKING:
    from PIL import Image

# Files of the copy that differ from ours, which need random numbers of the project and with them more than torch.
IN_PLACE = {
    "eldistill/__init__.py": '"""The networks of the project eldistill, as far as sampling from one needs them."""\n',
    "eldistill/diffusion/dropout.py": '''"""In place of the project's dropout, which needs its random numbers: nothing is random here."""


def dropout(x, p):
    raise RuntimeError("this copy of the network is for sampling: call eval() first")
''',
}


def source_files(file: str) -> dict[str, str]:
    """The source of networks/<file>.py and of all that it imports of this project, {path: text}: unchanged, but for IN_PLACE.

    Raises Problem if one of them imports a package beside torch.
    """
    found: dict[str, str] = {}
    waiting = ["networks/__init__", f"networks/{file}"]
    while waiting:
        name = waiting.pop()
        path = f"eldistill/{name}.py"
        if path in found:
            continue
        found[path] = IN_PLACE.get(path) or (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        ours, others = _imports(found[path])
        if others - {"torch"}:
            raise Problem(
                f"a network of the kind {file} needs more than torch and cannot be exported; share its generator_ema.safetensors as it is"
            )
        waiting += [*ours, *(f"{parent}/__init__".removeprefix("./") for parent in PurePosixPath(name).parents)]
    return found


def _imports(text: str) -> tuple[list[str], set[str]]:
    # What a file imports: files below src/eldistill/, without their ending, and the packages of others.
    ours, others = [], set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.module.startswith("eldistill."):
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = node.module.removeprefix("eldistill.").replace(".", "/")
            places = [base, *(f"{base}/{alias.name}" for alias in node.names)]
            ours += [place for place in places if (PACKAGE / f"{place}.py").exists()]
    return ours, others - set(sys.stdlib_module_names)


def export_run(run: str, out: str | Path | None = None, say=print) -> Path:
    """Write the folder of a finished run and return its path.

    run: DATA/METHOD/SUPPLEMENT/SEED. out: the folder, exports/RUN by default. Raises Problem; then nothing is written."""
    plan = Plan(params.load_params())
    step = plan.find("distil", run)
    path = next(Path(output) for output in step.outputs if output.endswith("generator_ema.safetensors"))
    if not path.exists():
        raise Problem(f"{path} is missing; run `python -m eldistill distil {run}` first")
    before = _signature(path)
    tensors, about = load_tensors(path)
    sources = source_files(about["config"]["network"])
    folder = Path(out or f"exports/{run.replace('/', '-')}")
    metrics = _metrics(run, about["recipe"], say)
    _, teacher = load_tensors(plan.teacher(plan.params.section("data", run.split("/")[0])["teacher"]).outputs[0])
    board, images = _picture(sampling.load_generator(path))
    with files.atomic(folder / "generator_ema.safetensors") as temporary:
        shutil.copyfile(path, temporary)
        if _signature(path) != before:  # the settings in config.json would be those of another generator
            raise Problem(f"{path} was replaced while it was read; repeat the command")
    with files.atomic(folder / "samples.png") as temporary:
        board.save(temporary, format="PNG")
    for name, text in sources.items():
        files.write_text(folder / name, text)
    files.write_json(folder / "config.json", about)
    files.write_text(folder / "load.py", LOADER)
    known, papers = _ensembles(run, about["lineage"]["params"]), citations.of_runs(plan, [run])
    files.write_text(folder / "README.md", model_card(run, about, metrics, teacher, known, papers))
    say(
        f"{folder}: {len(tensors)} tensors, {path.stat().st_size / 1e6:.1f} MB, {len(metrics)} numbers, {images} images"
    )
    if not metrics:
        say(
            f"{run} was not evaluated, and its card says so; `python -m eldistill evaluate {run}` measures it, then export it again"
        )
    return folder


def _signature(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _metrics(run: str, recipe: str, say) -> dict:
    # The numbers of the evaluation of the generator with this recipe; none of another one, such as of before a number was changed.
    path = Path(f"data/evaluations/{run}/metrics.json")
    if not path.exists():
        return {}
    upstream = (files.read_note(f"{path}.recipe") or {}).get("upstream", {})
    if upstream.get(f"distil {run}") != recipe:
        say(
            f"{path} is left out, because its recipe does not name this generator; it is of one that was made with other numbers"
        )
        return {}
    found: dict = files.read_json(path)
    return found


def _ensembles(run: str, params: dict) -> dict[str, dict]:
    # {supplement: section of its ensemble}, of those whose manifest is here.
    found = {}
    for name, each in params["supplements"].items():
        seed = params["seed"] if each.get("ensemble_seed") is None else each["ensemble_seed"]
        path = Path(f"data/ensembles/{run.split('/')[0]}/{each.get('ensemble')}/{seed}.json")
        if each.get("ensemble") and path.exists():
            found[name] = files.read_json(path)["section"]
    return found


def _picture(generator: sampling.Generator) -> tuple[Image.Image, int]:
    # A picture, and how many images it shows: 64, or eight of each class in a row.
    dim = generator.metadata["label_dim"]
    labels = classes.row_labels(dim, 8) if dim else None
    images = sampling.sample(generator, len(labels) if dim else 64, labels=labels)
    board = grid(images, 8, max(1, 32 // images.shape[-1]))
    return classes.add_row_titles(board, classes.row_titles(generator.metadata)) if dim else board, len(images)
