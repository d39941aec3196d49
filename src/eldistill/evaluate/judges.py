# SPDX-License-Identifier: Apache-2.0
"""Training of the two judges of a data setting, the classifiers whose features the evaluation uses.

They are trained on the train images by the common training loop. For images without labels the task is to predict by how many
quarter turns an image was rotated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from eldistill import networks
from eldistill.contract import Batch, Method, Phase
from eldistill.data import dataset as data
from eldistill.diffusion.draws import sent, stream_seed
from eldistill.tensors import save_tensors
from eldistill.training import loop
from eldistill.training.job import Job, Training
from eldistill.training.machine import Machine
from eldistill.training.optimisers import Ema, Optimiser

RECIPE = ("judges", 1)
BODIES = {"a": "conv", "b": "mlp"}


@dataclass(frozen=True)
class Numbers:
    """The numbers of the loss of a classifier."""

    smoothing: float  # of labels, from 0 to 1
    rotations: bool  # whether the task is to predict quarter turns, for images without labels


def phases(numbers: Numbers, progress) -> list[Phase]:
    """The phases of an iteration: one step of the classifier."""
    return [Phase("judge", images="none")]


def critic_terms(nets: dict, batch: Batch, images, numbers: Numbers) -> dict[str, torch.Tensor]:
    """{cross_entropy}: with label smoothing, mean over images."""
    x, labels = batch.real("image")
    if numbers.rotations:
        turns = batch.draw.on("cpu").integers("turns", 4)
        x = torch.stack([torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(x, turns, strict=True)])
        labels = sent(F.one_hot(turns, 4), x.device).to(x.dtype)
    return {"cross_entropy": F.cross_entropy(nets["judge"](x), labels, label_smoothing=numbers.smoothing)}


def train_judge(
    letter: str, recipe: dict, pack: Path, output: Path, folder: Path, digest: str, machine: Machine, say
) -> dict:
    """Train judge `letter` (a or b) and write it to `output`; returns its description, with its held-out accuracy in what it
    learned: the labels, or, where there are none, quarter turns.

    recipe: `judges` and `codec` of the data setting. pack: its packed images. folder: for saved states. digest: of the recipe."""
    numbers, codec = recipe["judges"], recipe["codec"]
    _, _, about = data.load_pack(pack)
    rotations = about["classes"] < 2
    reals = data.load_real_images(pack, codec, not rotations, machine.device)
    config = {"network": "classifier", "body": BODIES[letter], "img_resolution": reals.shape[1],
              "img_channels": reals.shape[0], "label_dim": 4 if rotations else about["classes"]}  # fmt: skip
    seed = stream_seed(0, f"judge-{letter}") % 2**31
    net = networks.build(config, seed).to(machine.device)
    total = numbers["n_images"] // numbers["batch"] * numbers["batch"]
    optimiser = Optimiser(
        kind="adamw", lr=numbers["lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, warmup_images=0,
        decay_images=total // 2, clip=0, clip_value=0,
    )  # fmt: skip
    job = Job(
        method=Method(phases=phases, critic_terms=critic_terms),
        numbers=Numbers(numbers["smoothing"], rotations),
        training=Training(total, numbers["batch"], Ema("constant", beta=0.98)),
        nets={"judge": net}, published="judge", reals=reals, shape=reals.shape, seed=seed, folder=folder,
        optimisers={"judge": optimiser}, device=machine.device, ticks=10, save_seconds=machine.save_seconds, log=say,
    )  # fmt: skip
    average = loop.Loop(job).run()
    result = {"config": net.config, "codec": codec, "recipe": digest, "rotations": rotations,
              "accuracy_heldout": accuracy(average, pack, codec, rotations)}  # fmt: skip
    save_tensors(output, average.state_dict(), result)
    return result


@torch.no_grad()
def accuracy(net: torch.nn.Module, pack: Path, codec: dict, rotations: bool = False) -> float:
    """Fraction of held-out images, from 0 to 1, whose label has the largest logit. With `rotations` the label is the number of
    quarter turns, and each image is seen in all four."""
    images, labels, _ = data.load_pack(pack, "heldout")
    device = next(net.parameters()).device

    def guesses(turns: int) -> torch.Tensor:
        parts = images.split(1000)  # many large images do not fit into memory at once
        turned = (torch.rot90(data.encode(part, codec), turns, (2, 3)) for part in parts)
        return torch.cat([net(x.to(device)).argmax(1).cpu() for x in turned])

    if not rotations:
        return round(float((guesses(0) == labels).double().mean()), 6)
    return round(sum(float((guesses(turns) == turns).double().mean()) for turns in range(4)) / 4, 6)
