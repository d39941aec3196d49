# SPDX-License-Identifier: Apache-2.0
"""The command `export`: writes a folder with a generator's weights, settings, model card and images, and a loader that needs only
torch and safetensors."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path, PurePosixPath

from eldistill import files
from eldistill.data import classes
from eldistill.errors import Problem
from eldistill.paths import PACKAGE
from eldistill.plan import params
from eldistill.plan.plan import Plan
from eldistill.sampling import generators as sampling
from eldistill.sampling.pictures import grid
from eldistill.tensors import load_tensors

LOADER = '''"""Images of this generator: `python load.py 16 samples.pt`. Needs torch and safetensors, nothing else."""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from eldistill import networks  # noqa: E402  (the folder beside this file)

about = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
net = networks.build(about["config"]).eval().requires_grad_(False)
net.load_state_dict(load_file(HERE / "generator_ema.safetensors"))
net.boundary = about["sampler"].get("boundary", 0.0)


def sample(n, seed=0, label=None):
    """uint8 images [n, c, h, w]; of a network of latents, float latents. label: a class, by name or number; None draws
    them as often as they occur in the train images, where config.json says it."""
    label = about.get("class_names", []).index(label) if isinstance(label, str) else label
    random, sigma = torch.Generator().manual_seed(seed), about["sampler"]["steps"]["1"][0]
    z, classes = torch.randn(n, *about["shape"], generator=random), about["label_dim"]
    counts = about.get("class_counts") or [1] * max(classes, 1)
    chosen = torch.randint(len(counts), (n,), generator=random)
    if len(set(counts)) > 1:
        chosen = torch.multinomial(torch.tensor(counts, dtype=torch.float64), n, replacement=True, generator=random)
    chosen = chosen if label is None else torch.full((n,), label)
    labels = torch.nn.functional.one_hot(chosen, classes).float() if classes else None
    x, codec = net(sigma * z, torch.full((n,), sigma), labels), about["codec"]
    if isinstance(codec["mean"], list):
        return x
    return ((x * codec["std"] / 0.5 + codec["mean"]) * 255 + 0.5).clamp(0, 255).to(torch.uint8)


if __name__ == "__main__":
    torch.save(sample(int(sys.argv[1])), sys.argv[2])
'''

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


def model_card(run: str, about: dict, metrics: dict, teacher: dict) -> str:
    """The model card, Markdown."""
    lineage, source = about["lineage"], teacher.get("source") or {}
    licence = source.get("licence") or "that of its data and of its teacher; nothing else is claimed"
    numbers = "\n".join(
        f"| `{name}` | {value:.4g} |" for name, value in sorted(metrics.items()) if isinstance(value, int | float)
    )
    origin = f"{source['name']} (sha256 {source['sha256']})" if source.get("name") else "trained in the same project"
    data = lineage["params"]["data"]
    names = about.get("class_names", [])
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(names[:100]))
    listed += f", … ({len(names):,}; all stand in `config.json`)" if len(names) > 100 else ""
    steps = " or ".join(about["sampler"]["steps"])
    return f"""# {run}

A one-step generator of images of shape {about["shape"]}, distilled from a diffusion teacher by the project eldistill
(method `{lineage["method"]}`, {about["n_images"]:,} generated images{", sampled in " + steps + " steps" if steps != "1" else ""}).

![samples](samples.png)

```sh
python load.py 16 samples.pt        # needs torch and safetensors
```

## Where it comes from

* **Data**: `{run.split("/")[0]}`: {json.dumps(data, sort_keys=True)}
* **Classes**: {listed or "none"}
* **Teacher**: {origin}; sha256 of the file it was distilled from: `{lineage["teacher_sha256"]}`
* **Made from**: recipe `{about["recipe"]}`, git commit `{lineage["git_commit"]}`; every setting stands in `config.json`

## Licence

{licence}. A student follows its teacher and its data: pass it on under their terms.

## Numbers

Names say what was measured: the distance, of how many images, in which features, to which images. Lower is better for fd
and kid, higher for precision and recall.

| metric | value |
| --- | ---: |
{numbers or "| not evaluated | |"}

## Limits

It shows what its data shows, with its gaps and its slants, and nothing beyond; images may resemble those it was trained on.
Numbers in different features, of different numbers of images or to other references are not comparable. It was trained and
measured for research.

## Citation

The Embedding Loss: Ying et al. 2026, arXiv 2604.22379. The teacher and the preconditioning: Karras et al. 2022, arXiv
2206.00364. The method: see eldistill's list of methods.
"""


def export_run(run: str, out: str | Path | None = None, say=print) -> Path:
    """Write the folder of a finished run and return its path.

    run: DATA/METHOD/SUPPLEMENT/SEED. out: the folder, exports/RUN by default. Raises Problem; then nothing is written."""
    plan = Plan(params.load_params())
    step = plan.find("distil", run)
    path = next(Path(output) for output in step.outputs if output.endswith("generator_ema.safetensors"))
    if not path.exists():
        raise Problem(f"{path} is missing; run `python -m eldistill distil {run}` first")
    tensors, about = load_tensors(path)
    sources = source_files(about["config"]["network"])
    folder = Path(out or f"exports/{run.replace('/', '-')}")
    evaluation = Path(f"data/evaluations/{run}/metrics.json")
    metrics = files.read_json(evaluation) if evaluation.exists() else {}
    _, teacher = load_tensors(plan.teacher(plan.params.section("data", run.split("/")[0])["teacher"]).outputs[0])
    images = _picture(sampling.load_generator(path), folder / "samples.png")
    for name, text in sources.items():
        files.write_text(folder / name, text)
    files.write_json(folder / "config.json", about)
    files.write_text(folder / "load.py", LOADER)
    files.write_text(folder / "README.md", model_card(run, about, metrics, teacher))
    with files.atomic(folder / "generator_ema.safetensors") as temporary:
        shutil.copyfile(path, temporary)
    say(
        f"{folder}: {len(tensors)} tensors, {path.stat().st_size / 1e6:.1f} MB, {len(metrics)} numbers, {images} images"
    )
    return folder


def _picture(generator: sampling.Generator, path: Path) -> int:
    # How many images it shows: 64, or eight of each class in a row.
    dim = generator.metadata["label_dim"]
    labels = classes.row_labels(dim, 8) if dim else None
    images = sampling.sample(generator, len(labels) if dim else 64, labels=labels)
    board = grid(images, 8, max(1, 32 // images.shape[-1]))
    with files.atomic(path) as temporary:
        (classes.add_row_titles(board, classes.row_titles(generator.metadata)) if dim else board).save(
            temporary, format="PNG"
        )
    return len(images)
