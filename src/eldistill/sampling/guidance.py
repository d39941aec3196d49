# SPDX-License-Identifier: Apache-2.0
"""Guided teachers: a denoiser that is pushed away from a worse one.

    D(x; sigma) = D_guide(x; sigma) + w (D_main(x; sigma) - D_guide(x; sigma))

The convention is that of EDM2: w = 1 is no guidance, w > 1 extrapolates beyond the main network. Where others write a scale s
with 1 + s in front of the main network, w is 1 + s. Two kinds of guide:

* the main network without a label, or a network without classes: classifier-free guidance (Ho & Salimans 2022, arXiv
  2207.12598);
* a worse network that sees the same label, smaller or trained for less time: autoguidance (Karras et al. 2024, arXiv
  2406.02507).

Guidance may be limited to noise levels sigma_low < sigma <= sigma_high (Kynkäänniemi et al. 2024, arXiv 2404.07724); outside of
them D is D_main.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from eldistill.contract import Denoiser
from eldistill.errors import Problem
from eldistill.sampling import teachers

RECIPE = ("guidance", 1)


class Guided(torch.nn.Module):
    """The guided denoiser of two networks, frozen. It costs a pass of each; gradients at x flow through both.

    main: the network that is guided. guide: the other one, which gets the same label; None: main without a label. weight: w above,
    0 or more. low, high: the limits of sigma; None for no upper one. All other attributes are those of main.

        guided = Guided(main, worse, weight=2.0)
        image = guided(x, sigma, labels)
        assert torch.allclose(image, 2 * main(x, sigma, labels) - worse(x, sigma, labels), atol=1e-5)
    """

    def __init__(
        self, main: Denoiser, guide: Denoiser | None, weight: float, low: float = 0.0, high: float | None = None
    ) -> None:
        super().__init__()
        self.main, self.guide = main, guide
        self.weight, self.low, self.high = weight, low, high

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The denoised image [n, c, r, r]; arguments and errors are those of EDMPrecond.

        On a CPU the second pass is omitted if guidance acts on no image; on a GPU it never is, because asking waits for it.
        """
        image = self.main(x, sigma, labels)
        weight = self._weights(sigma, image)
        if isinstance(weight, torch.Tensor) and weight.device.type == "cpu" and bool((weight == 1).all()):
            return image
        other = self.main(x, sigma) if self.guide is None else self.guide(x, sigma, labels)
        return torch.lerp(other, image, weight)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("main"), name)

    def ready(self) -> None:
        """Update the half precision copies of the weights of both networks now instead of in the next pass."""
        for each in networks_of(self):
            each.ready()

    def _weights(self, sigma: torch.Tensor | float, image: torch.Tensor) -> torch.Tensor | float:
        # w, or with limits the weight of each image [n or 1, 1, 1, 1]: 1 outside of them.
        if not self.low and self.high is None:
            return self.weight
        sigma = torch.as_tensor(sigma, dtype=image.dtype, device=image.device).reshape(-1, 1, 1, 1)
        inside = (sigma > self.low) & (sigma <= (float("inf") if self.high is None else self.high))
        return torch.where(inside, self.weight, 1.0).to(image.dtype)


def load_teacher(
    path: str | Path, guidance: dict[str, Any] | None = None, guide: str | Path | None = None, device: str = "cpu"
) -> tuple[Denoiser, dict[str, Any]]:
    """Load a teacher.safetensors, and guide it as a recipe says, as (frozen denoiser, metadata of the teacher).

    guidance: {weight, …} of a recipe (plan/guidance.py); None: the network itself, as `teachers.load_denoiser` returns it. guide: the
    file of the other network; None: the teacher without a label. Raises Problem for files that are not teachers or do not fit
    together.
    """
    main, about = teachers.load_denoiser(path, device)
    if guidance is None:
        return main, about
    other = None
    if guide is None:
        if not about["label_dim"]:
            raise Problem(
                f"{path} knows no labels, so that no pass without one can guide it; name another teacher as guide"
            )
    else:
        other, its = teachers.load_denoiser(guide, device)
        check_pair(path, about, guide, its)
    low, high = guidance.get("sigma_low", 0.0), guidance.get("sigma_high")
    return Guided(main, other, guidance["weight"], low, high).requires_grad_(False).eval(), about


def check_pair(path: str | Path, about: dict[str, Any], guide: str | Path, its: dict[str, Any]) -> None:
    """Raise Problem if a network cannot guide another one: other images, another codec or other classes.

    about, its: the metadata of both. A guide without classes is accepted: it ignores the label.
    """
    for key, words in (("shape", "images of shape {}"), ("codec", "the codec {}")):
        if about[key] != its[key]:
            raise Problem(
                f"{guide} was trained on {words.format(its[key])} and cannot guide {path}, which has {words.format(about[key])}; name a "
                "guide that was trained on the same images"
            )
    if its["label_dim"] not in (0, about["label_dim"]):
        raise Problem(
            f"{guide} knows {its['label_dim']} classes and cannot guide {path}, which knows {about['label_dim']}; name a guide with the "
            "same classes, or without any"
        )


def describe(guidance: dict[str, Any]) -> str:
    """The guidance of a recipe as a clause, such as `guided by worse with weight 2`."""
    guide = "itself without a label" if guidance["guide"] is None else guidance["guide"]
    low, high = guidance.get("sigma_low"), guidance.get("sigma_high")
    limits = [] if not low else [f"above {low:g}"]
    limits += [] if high is None else [f"up to {high:g}"]
    where = f" at noise levels {' and '.join(limits)}" if limits else ""
    return f"guided by {guide} with weight {guidance['weight']:g}{where}"


def networks_of(teacher: Denoiser) -> list[Denoiser]:
    """The networks of a teacher: itself; of a guided one the main network and, if it is another, its guide."""
    if not isinstance(teacher, Guided):
        return [teacher]
    return [teacher.main, *([] if teacher.guide is None else [teacher.guide])]
