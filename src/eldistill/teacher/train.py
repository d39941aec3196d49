# SPDX-License-Identifier: Apache-2.0
"""Training of a teacher with EDM's loss (Karras et al. 2022, arXiv 2206.00364, table 1) in the common training loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from eldistill import networks
from eldistill.contract import Batch, Method, Phase
from eldistill.data import dataset as data
from eldistill.diffusion import augment, noise
from eldistill.errors import Problem
from eldistill.tensors import save_tensors
from eldistill.training import compute, loop
from eldistill.training.job import Job, Training
from eldistill.training.machine import Machine
from eldistill.training.optimisers import Ema, Optimiser

RECIPE = ("teacher/train", 1)


@dataclass(frozen=True)
class Numbers:
    """The numbers of EDM's loss, from a section of `teacher` in params.yaml."""

    P_mean: float  # mean of ln sigma
    P_std: float  # standard deviation of ln sigma
    augment: float  # probability of each kind of EDM's augmentation; 0: none
    label_dropout: float = 0.0  # probability that an image is shown without its label


def phases(numbers: Numbers, progress) -> list[Phase]:
    """The phases of an iteration: one step of the denoiser."""
    return [Phase("teacher", images="none")]


def critic_terms(nets: dict, batch: Batch, images, numbers: Numbers) -> dict[str, torch.Tensor]:
    """{denoising}: the denoising loss on real images, summed over pixels, mean over images."""
    x, labels = batch.real("image")
    augment_labels = None
    if numbers.augment:
        x, augment_labels = augment.edm_apply(x, augment.edm_parameters(batch.draw.on("cpu"), numbers.augment))
    sigma = noise.lognormal(batch.draw.normal("sigma"), numbers.P_mean, numbers.P_std)
    epsilon = batch.draw.normal("epsilon", *batch.shape)
    if numbers.label_dropout:  # a row of zeros is no label
        kept = batch.draw.uniform("label_dropout") >= numbers.label_dropout
        labels = labels * kept[:, None].to(labels)
    loss = noise.denoising_loss(nets["teacher"], x, labels, sigma, epsilon, augment_labels)
    return {"denoising": loss.sum(dim=(1, 2, 3)).mean()}


def train_teacher(
    recipe: dict, pack: Path, output: Path, folder: Path, digest: str, machine: Machine, say
) -> loop.Loop:
    """Train a teacher and write its running average to `output`, together with the configuration of its network.

    recipe: the section of `teacher` with codec and labels of its data. pack: its packed images. folder: for saved states. digest: of
    the recipe. Returns the finished loop. Raises Problem if the network cannot be built."""
    reals = data.load_real_images(pack, recipe["codec"], recipe["labels"], machine.device)
    config = {**recipe["network"], "img_resolution": reals.shape[1], "img_channels": reals.shape[0],
              "label_dim": reals.label_dim}  # fmt: skip
    if recipe["augment"]:
        config["augment_dim"] = 9
    try:
        net = networks.build(config, recipe["seed"]).to(machine.device)
    except (ValueError, TypeError) as error:
        raise Problem(
            f"params.yaml: the network of this teacher cannot be built for images of shape {list(reals.shape)} ({str(error).rstrip('.')}); "
            "change `network` of the teacher, or set `resolution` of its data setting to a size that the network can take"
        ) from None
    arithmetic = compute.set_arithmetic(recipe.get("precision", "float32"), machine, [net])
    compute.prepare_networks(machine, [], [net])
    job = Job(
        method=Method(phases=phases, critic_terms=critic_terms),
        numbers=Numbers(recipe["P_mean"], recipe["P_std"], recipe["augment"], recipe.get("label_dropout", 0.0)),
        training=Training(recipe["n_images"], recipe["batch"], Ema.of(recipe["ema"])),
        nets={"teacher": net}, published="teacher", reals=reals, shape=reals.shape, seed=recipe["seed"], folder=folder,
        optimisers={"teacher": Optimiser.of(recipe["optimiser"])},
        device=machine.device, micro_batch=machine.micro_batch, save_seconds=machine.save_seconds, max_seconds=machine.max_seconds, log=say,
        arithmetic=arithmetic,
    )  # fmt: skip
    work = loop.Loop(job)
    average = work.run()
    if work.across.rank:  # only the first process writes
        return work
    about = {"config": net.config, "codec": recipe["codec"], "shape": list(reals.shape), "label_dim": reals.label_dim,
             "n_images": work.n_images, "recipe": digest}  # fmt: skip
    save_tensors(output, average.state_dict(), about)
    return work
