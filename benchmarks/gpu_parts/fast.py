# SPDX-License-Identifier: Apache-2.0
"""The part `fast`: the time of an iteration relative to its bare passes, by method, precision and network, and its parts."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from dataclasses import dataclass

import step
import torch

from eldistill.steps import work
from gpu_parts.items import Item, LeftOut, free, is_memory

SMALLEST = 4  # smallest number of images at once that is tried
SHARES = ("supplement", "noise", "augmentation", "data", "optimiser")
SUBJECTS = {  # networks of the papers, with their numbers, dropout and augmentation
    "ddpmpp-cifar10": step.Subject("cifar10", 32, 3, "cifar10"),
    "adm-imagenet64": step.Subject("imagenet64", 64, 3, "imagenet64"),
    "edm2-xs-latents": step.Subject({"network": "edm2", "model_channels": 128}, 64, 4, "imagenet512-s"),
}
SUBJECTS["ddpmpp-cifar10 without dropout"] = dataclasses.replace(SUBJECTS["ddpmpp-cifar10"], dropout=0.0)
_TOY = {"channel_mult": [1], "num_blocks": 1, "attn_resolutions": [16]}
TOYS = {
    "ddpmpp-cifar10": step.Subject({"network": "song", "model_channels": 8, **_TOY}, 8, 3, "cifar10"),
    "adm-imagenet64": step.Subject({"network": "adm", "model_channels": 64, **_TOY}, 16, 3, "imagenet64"),
    "edm2-xs-latents": step.Subject(
        {"network": "edm2", "model_channels": 16, "channels_per_head": 8, **_TOY}, 16, 4, "imagenet512-s"
    ),
}
TOYS["ddpmpp-cifar10 without dropout"] = dataclasses.replace(TOYS["ddpmpp-cifar10"], dropout=0.0)


@dataclass(frozen=True)
class Setting:
    """The settings of a measurement."""

    network: str
    batch: int
    method: str
    supplement: str = "none"
    precision: str = "bfloat16"
    compile: bool = False

    def __str__(self) -> str:
        words = [self.network, f"batch {self.batch}", f"{self.method}/{self.supplement}", self.precision]
        return ", ".join([*words, "compiled"] if self.compile else words)


def items(options) -> list[Item]:
    """DDPM++ for CIFAR-10 with SiD in three precisions, with EL, and compiled; then other methods; then ADM and EDM2."""
    step.NETWORKS.update(TOYS if options.toy else SUBJECTS)
    cifar, large = (8, 4) if options.toy else (256, 64)
    wanted = [
        (Setting("ddpmpp-cifar10", cifar, "sid", precision="float32"), 4.0),
        (Setting("ddpmpp-cifar10", cifar, "sid", precision="tf32"), 2.0),
        (Setting("ddpmpp-cifar10", cifar, "sid"), 1.5),
        (Setting("ddpmpp-cifar10", cifar, "sid", "el"), 1.5),
        (Setting("ddpmpp-cifar10", cifar, "sid", compile=True), 5.0),
        *((Setting("ddpmpp-cifar10", cifar, method), 1.0) for method in ("di", "dmd", "ect")),
        (Setting("adm-imagenet64", large, "sid"), 2.0),
        (Setting("edm2-xs-latents", large, "sid"), 2.0),
        *((Setting("ddpmpp-cifar10", cifar, method, "el"), 1.0) for method in ("di", "dmd", "ect")),
        (Setting("ddpmpp-cifar10 without dropout", cifar, "sid"), 1.0),
        (Setting("adm-imagenet64", large, "sid", "el"), 2.0),
        (Setting("edm2-xs-latents", large, "sid", "el"), 2.0),
    ]
    return [
        Item(
            str(each), lambda seconds, each=each: measured(each, options, seconds), weight, 1.5 if each.compile else 3.0
        )
        for each, weight in wanted
    ]


def measured(setting: Setting, options, seconds: float) -> dict:
    """The row of step.measure, with the percentage of each part. A batch that does not fit is halved, which the row records."""
    if setting.precision == "tf32" and options.device != "cuda":
        raise LeftOut("tf32 is a format of GPUs")
    if setting.compile and options.toy and not options.compile:
        raise LeftOut("toy networks are not compiled unless --compile asks for it")
    work.set_threads(options.threads, "distil")  # like every step; this also switches off tf32 after the previous item
    asked = Namespace(
        device=options.device, network=setting.network, batch=setting.batch, precision=setting.precision,
        compile=setting.compile, channels_last=False, recompute=False, warmup=1, repeats=3 if options.toy else 20,
    )  # fmt: skip
    asked.ceiling = ceiling_of(asked, options.ceilings)
    at_once, too_much = setting.batch, []
    while True:
        row = _measured(setting, asked, options, at_once, seconds)
        if row is not None:
            break
        too_much.append(at_once)
        at_once //= 2
        free(options.device)  # after the exception is gone, because its frames hold tensors
        if at_once < SMALLEST:
            raise torch.OutOfMemoryError(f"{2 * at_once} images at once do not fit")
    whole = sum(row["parts_milliseconds"].values())
    shares = {f"{part}_percent": 100 * row["parts_milliseconds"].get(part, 0.0) / whole for part in SHARES}
    return {**row, **shares, "did_not_fit": too_much, "ceiling_flop_per_second": asked.ceiling}


def _measured(setting: Setting, asked, options, at_once: int, seconds: float) -> dict | None:
    try:
        return step.measure(
            options.settings, setting.method, setting.supplement, asked, options.folder,
            0 if at_once == setting.batch else at_once, seconds,
        )  # fmt: skip
    except RuntimeError as error:
        if not is_memory(error):
            raise
        return None
    finally:
        if setting.compile:
            torch.compiler.reset()  # compiled code keeps its networks alive


def ceiling_of(asked, known: dict[str, float]) -> float:
    """Floating-point operations per second of a large matrix product in this precision, measured once."""
    if asked.precision not in known:
        known[asked.precision] = step.ceiling(asked)
    return known[asked.precision]
