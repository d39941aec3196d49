# SPDX-License-Identifier: Apache-2.0
"""Loads the data, networks and supplements of a run from its recipe and files.

A probe of a finished run uses it too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from eldistill import contract
from eldistill.contract import Batch, Method, Nets, Progress, Setting
from eldistill.data import dataset
from eldistill.diffusion.draws import Draw, stream_seed
from eldistill.distil import student
from eldistill.errors import Problem
from eldistill.numbers import make_numbers
from eldistill.registry import literal
from eldistill.sampling import generators, guidance
from eldistill.training.job import Job, Supplement
from eldistill.training.machine import Machine

COVERED_BY = "distil"
Recipe = dict[str, Any]  # the `params` of a distil recipe
Upstream = dict[str, Any]  # paths: images, teacher, guide, ensembles, pairs and start (see `run.train_generator`)


@dataclass(frozen=True)
class Parts:
    """The loaded method, teacher and images of a run."""

    method: Method
    numbers: Any  # of the method
    teacher: torch.nn.Module  # frozen: what losses evaluate, guided if the recipe says so
    metadata: dict[str, Any]  # of the teacher: config, codec, shape, label_dim, …
    reals: dataset.PackedImages  # train images

    @property
    def network(self) -> torch.nn.Module:
        """The teacher's own network, which others are copied from; of a guided teacher the one that is guided."""
        return guidance.networks_of(self.teacher)[0]

    @property
    def sigma_init(self) -> float:
        """The noise level that the generator starts from."""
        return float(self.method.sampler(self.numbers)["steps"]["1"][0])


def load_parts(recipe: Recipe, upstream: Upstream, device: str) -> Parts:
    """Load method, teacher and images of a recipe to a device. Raises Problem if they do not fit together."""
    file = recipe["method"]["file"]
    method = contract.load_method(file)
    if recipe["method"].get("generator_network") and not literal(f"methods/{file}", "OTHER_SIZE", False):
        raise Problem(
            f"params.yaml: the method {file} needs a generator of the teacher's size; set generator_network to null"
        )
    numbers = make_numbers(method, recipe["method"])
    teacher, metadata = guidance.load_teacher(
        upstream["teacher"], recipe.get("guidance"), upstream.get("guide"), device
    )
    if metadata["codec"] != recipe["data"]["codec"]:
        raise Problem(
            f"{upstream['teacher']} was trained with codec {metadata['codec']}, but the data has {recipe['data']['codec']}; choose "
            "a teacher that was trained with the codec of the data"
        )
    reals = dataset.load_real_images(upstream["images"], recipe["data"]["codec"], recipe["data"]["labels"], device)
    if reals.label_dim != metadata["label_dim"] or list(reals.shape) != metadata["shape"]:
        raise Problem(
            f"{upstream['teacher']} makes images of shape {metadata['shape']} with {metadata['label_dim']} labels, "
            f"the data has {list(reals.shape)} and {reals.label_dim}; choose a teacher that fits"
        )
    return Parts(method, numbers, teacher, metadata, reals)


def upstream_files(recipe: Recipe, files: Iterable[Path]) -> Upstream:
    """The upstream files that the supplements of a run read.

    files: outputs of all upstream steps. Returns {"ensembles": manifests in the order of the supplements, "pairs":
    {(n, seed): path}}.
    """
    files = list(files)
    manifests = {
        (path.parent.name, path.stem): path for path in files if path.suffix == ".json" and "ensembles" in path.parts
    }
    ensembles = []
    for each in recipe["supplements"].values():
        if each.get("ensemble"):
            seed = recipe["seed"] if each.get("ensemble_seed") is None else each["ensemble_seed"]
            ensembles.append(manifests[each["ensemble"], str(seed)])
    pairs = [path for path in files if path.suffix == ".npz" and path.stem.startswith("pairs-")]
    return {"ensembles": ensembles, "pairs": {tuple(map(int, path.stem.split("-")[1:])): path for path in pairs}}


# --- networks -------------------------------------------------------------------------------------------


def load_start(path: Path | None, made: Parts, device: str) -> tuple[torch.nn.Module | None, int]:
    """Load the generator that a run starts from: (network, images it was trained on), or (None, 0) without a path.

    Raises Problem if it starts from another noise level than this method.
    """
    if not path:
        return None, 0
    begun = generators.load_generator(path, device)
    level = begun.metadata["sampler"]["steps"]["1"][0]
    if level != made.sigma_init:
        raise Problem(
            f"{path} starts from the noise level {level}, but this method from {made.sigma_init}; set sigma_init to {level}"
        )
    return begun.network, begun.metadata["n_images_before"] + begun.metadata["n_images"]


def make_networks(
    made: Parts, start: torch.nn.Module | None, seed: int, sizes: dict[str, Any] | None = None
) -> Nets:  # fmt: skip
    """Make the networks that a run trains: the generator, and the further ones of the method.

    sizes: those in which the generator's network differs from the teacher's. Raises Problem if a network does not fit.
    """
    key = stream_seed(seed, "initialisation")
    if start is None:
        own = student.resize(made.network, sizes, seed, made.sigma_init)
    else:
        own = made.network
        config = {key: value for key, value in cast(dict[str, Any], start.config).items() if key != "interval"}
        if config != (wanted := student.config_of(cast(dict[str, Any], own.config), sizes)):
            raise Problem(
                f"the generator of start_from has the network {config}, but this run asks for {wanted}; make generator_network "
                "of both methods equal"
            )
    generator = made.method.generator(own, start, made.numbers)
    if start is not None and "interval" in cast(dict[str, Any], start.config):
        _check_second_level(start, made)
    nets = {"generator": generator, **made.method.networks(made.network, made.numbers, key)}
    if start is not None and "target" in nets:
        nets["target"].load_state_dict(
            generator.state_dict()
        )  # a target is an average of the generator and starts equal to it
    return nets


def _check_second_level(start: torch.nn.Module, made: Parts) -> None:
    # A generator with a second noise level can only begin a run of a method that gives its generator the same one.
    fresh = made.method.generator(made.network, None, made.numbers)
    mine, its = (cast(dict[str, Any], net.config).get("interval") for net in (fresh, start))
    if mine != its:
        raise Problem(
            f"the generator of start_from has a second noise level of {its} cosines, and that of this method "
            f"{f'one of {mine}' if mine else 'none'}; set start_from to a method of the same kind, or to null"
        )


def set_dropout(nets: Nets, probability: float | None) -> None:
    """Give all layers with dropout this probability; None leaves them as they are.

    Raises Problem if there is no such layer.
    """
    if probability is None:
        return
    every = [each for net in nets.values() for each in net.modules()]
    layers: list[Any] = [
        each for each in every if type(each).__module__.startswith("eldistill.") and hasattr(each, "dropout")
    ]
    if probability and not layers:
        raise Problem(f"params.yaml: dropout is {probability}, but the teacher's network has none; set it to 0 or null")
    for layer in layers:
        layer.dropout = probability


@torch.no_grad()
def check_start(job: Job, teacher: torch.nn.Module) -> None:
    """Check that a generator that is a copy of the teacher returns the teacher's denoised image before training.

    Raises Problem if it does not, which means that the method's `generate` and `sampler` disagree.
    """
    net = job.nets["generator"]
    mine, its = net.state_dict(), teacher.state_dict()
    more = mine.keys() - its.keys()  # of layers without an effect yet, such as that of a second noise level
    if (
        its.keys() - mine
        or any(not torch.equal(mine[key], its[key]) for key in its)
        or any(mine[key].any() for key in more)
    ):
        return
    draw = Draw(job.seed, "check", 0, 4, job.device)
    labels = job.reals.labels(draw.integers("label", len(job.reals)))
    batch = Batch(draw, labels, job.shape, Progress(0, 0, job.training.n_images), job.reals)
    net.eval()
    image = job.method.generate(job.nets, batch, job.numbers)
    sigma = job.method.sampler(job.numbers)["steps"]["1"][0]
    teacher = copy.deepcopy(teacher)
    teacher.boundary = net.boundary  # a consistency model's scalings differ by design
    expected = teacher(sigma * draw.normal("z", *job.shape), torch.full((4,), sigma, device=job.device), labels)
    if not torch.allclose(image, expected, atol=1e-5):
        raise Problem(
            "the generator does not start at the teacher's denoised image; the method's `generate` and `sampler` disagree"
        )


# --- supplements ----------------------------------------------------------------------------------------


def prepare_supplements(recipe: Recipe, upstream: Upstream, made: Parts, machine: Machine) -> list[Supplement]:
    """Load and prepare the supplements of a run, without adding their networks.

    upstream: see `upstream_files`. Raises Problem.
    """
    waiting, found = list(upstream["ensembles"]), []
    for name, values in recipe["supplements"].items():
        module = contract.load_supplement(values["file"])
        numbers = make_numbers(module, values)
        pairs = (values["pairs"], values.get("pairs_seed", 0)) if values.get("pairs") else None
        setting = Setting(
            sigma_data=made.reals.sigma_data, seed=recipe["seed"], sigma_init=made.sigma_init, device=machine.device,
            ensemble=waiting.pop(0) if values.get("ensemble") else None,
            pairs=upstream["pairs"][pairs] if pairs else None, codec=recipe["data"]["codec"],
            label_dim=made.reals.label_dim, micro_batch=machine.micro_batch, teacher=made.network,
            reals=made.reals,
        )  # fmt: skip
        found.append(Supplement(name, module, numbers, module.prepare(numbers, setting)))
    return found


def add_networks(nets: Nets, added: Iterable[Supplement], seed: int) -> None:
    """Let each supplement add its weights to the networks, in place. Raises Problem if one does not fit."""
    for each in added:
        each.module.networks(nets, each.prepared, each.numbers, stream_seed(seed, f"initialisation/{each.name}"))
