# SPDX-License-Identifier: Apache-2.0
"""f-divergences between teacher and generator at each noise level: f-distill (Xu et al. 2025, arXiv 2502.15681) and
Uni-Instruct (Wang et al. 2025, arXiv 2505.20755).

Symbols: q is the density of the teacher's noisy images and p of the generated ones; D_phi is the teacher, D_psi the
fake_score, r = q / p, Delta = D_phi - D_psi = sigma^2 grad ln r. A discriminator tells real from generated images; its
logit estimates ln r.

    gradient: weighted    f-distill: of E_p f(r), which is h(r) (D_psi - D_phi) / sigma^2 at x_t, h(r) = r^2 f''(r)
    gradient: expanded    Uni-Instruct: of E_p h(r) |Delta|^2 / 2, whose integral over noise levels is the divergence of
                          the images themselves: that of h Delta . (D_psi - x) + (h - r h') |Delta|^2 / 2

Both are divided by mean |x - D_phi|, as DMD's. The second is taken through x, both denoisers and r, of which
grad ln r = Delta / sigma^2 is used: no pass more. With h = 1 it is SiD's loss at alpha 1/2, the first is DMD2's.

f-distill clips r, divides it by its mean over images of similar noise levels (E_p r = 1) and h by its mean. The authors
average over all images of a step; here the number is `group`, so that the machine does not change the loss.

Departures: noise levels, fake_score's loss and the discriminator, a head on fake_score's encoder, are those of DMD2 in
both (f-distill's head is on the teacher's encoder; Uni-Instruct's discriminator and losses are SiDA's). The code of
Uni-Instruct holds r constant where it weighs Delta . (D_psi - x), takes it from the adversarial loss, and leaves out
parts of the last term; here both are the derivative of the divergence.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from eldistill.contract import AtImages, Batch, Phase, Progress
from eldistill.errors import Problem
from eldistill.losses import adversarial, score
from eldistill.losses.score import generate as generate
from eldistill.losses.score import generator as generator
from eldistill.losses.score import sampler as sampler
from eldistill.numbers import number

RECIPE = ("methods/f_divergence", 1)
OTHER_SIZE = True  # its generator may be smaller or larger than the teacher
Weights = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
# {divergence: r -> (h, h - r h')}, h = r^2 f''(r), and the f that it is of.
DIVERGENCES: dict[str, Weights] = {
    "reverse-kl": lambda r: (torch.ones_like(r), torch.ones_like(r)),  # -ln r
    "forward-kl": lambda r: (r, torch.zeros_like(r)),  # r ln r
    "jeffreys": lambda r: (r + 1, torch.ones_like(r)),  # (r - 1) ln r
    "jensen-shannon": lambda r: (r / (r + 1), (r / (r + 1)) ** 2),  # r ln r - (r + 1) ln((r + 1) / 2)
    "chi-squared": lambda r: (2 * r**2, -2 * r**2),  # (r - 1)^2
    "squared-hellinger": lambda r: (r.sqrt() / 4, r.sqrt() / 8),  # 1 - sqrt(r)
    "softened-reverse-kl": lambda r: (1 / (r + 1), (2 * r + 1) / (r + 1) ** 2),  # (r + 1) ln((r + 1) / (2 r))
}


@dataclass(frozen=True)
class Numbers:
    """The numbers of f-distill and Uni-Instruct; without a source they are those of DMD2."""

    divergence: str = number(
        "jensen-shannon", "the f-divergence, of the teacher from the generator (f-distill: best on ImageNet-64)",
        choices=("reverse-kl", "forward-kl", "jeffreys", "jensen-shannon", "chi-squared", "squared-hellinger",
                 "softened-reverse-kl"),
    )  # fmt: skip
    gradient: str = number("weighted", "weighted: f-distill; expanded: Uni-Instruct", choices=("weighted", "expanded"))
    through_ratio: bool = number(
        True, "expanded: the gradient also passes through the ratio (Uni-Instruct's code: false)"
    )
    unit_means: bool = number(True, "divide the ratio and its weight by their means (f-distill)")
    intervals: int = number(
        1, "equal parts of the noise levels in which the ratio has a mean each (FastGen: 10)", low=1
    )
    group: int = number(32, "images over which these means are taken (FastGen: all images of a step)", low=1)
    ratio_min: float = number(0.1, "smallest density ratio; smaller ones are clipped (FastGen)", above=0)
    ratio_max: float = number(20.0, "largest density ratio; larger ones are clipped (FastGen)", above=0)
    sigma_init: float = number(80.0, "noise level the generator starts from (Uni-Instruct: 2.5)", above=0)
    bins: int = number(1000, "entries of the Karras grid that sigma is drawn from", low=2)
    low: float = number(0.02, "generator: lowest entry, as a share of the grid (Uni-Instruct: 0)", low=0, below=1)
    high: float = number(0.98, "generator: highest entry, as a share of the grid (Uni-Instruct: 0.8)", above=0, high=1)
    every: int = number(
        5, "iterations between generator steps; each has one step of fake_score (Uni-Instruct: 1)", low=1
    )
    weight_generator: float = number(3e-3, "factor of the adversarial loss of the generator", low=0)
    weight_critic: float = number(1e-2, "factor of the adversarial loss of fake_score and head", above=0)
    images: str = number(
        "reuse", "reuse: fake_score trains on the images of the generator's step; fresh: on new images, one more pass",
        choices=("reuse", "fresh"),
    )  # fmt: skip

    def __post_init__(self):
        score.check_grid(self.low, self.high, "f_divergence")
        if self.ratio_min >= self.ratio_max:
            raise Problem(
                f"params.yaml: ratio_min is {self.ratio_min} and ratio_max {self.ratio_max} of f_divergence; "
                "expected ratio_min below ratio_max"
            )


def phases(numbers: Numbers, progress: Progress) -> list[Phase]:
    """The generator every few iterations, then fake_score; see score.phases for what re-use changes."""
    return score.phases(numbers.images, numbers.every, generator_first=True)


def networks(teacher: torch.nn.Module, numbers: Numbers, seed: int) -> dict[str, torch.nn.Module]:
    """The extra network: fake_score, a copy of the teacher, with a head on its encoder."""
    return {"fake_score": adversarial.add_head(copy.deepcopy(teacher), seed)}


def group(numbers: Numbers) -> int:
    """The number of images that must stay in one micro-batch."""
    return numbers.group if numbers.unit_means else 1


def critic_terms(nets: dict, batch: Batch, images: torch.Tensor, numbers: Numbers) -> dict[str, torch.Tensor]:
    """fake_score's denoising loss, and the head's loss on generated and real images."""
    net = nets["fake_score"]
    loss = adversarial.critic(net, batch, images, numbers.bins, "head")
    return {
        "denoising": score.matching_denoising(net, batch, images, numbers.bins),
        "adversarial": numbers.weight_critic * loss,
    }


def generator_terms(nets: dict, batch: Batch, images, numbers: Numbers) -> dict[str, AtImages]:
    """The gradient of the divergence, and the head's loss at the same noisy images; neither value shows progress.

    One gradient carries both: that of `matching`.
    """
    net, labels, (sigma, interval) = nets["fake_score"], batch.labels, levels(batch, numbers)
    shift = sigma.reshape(-1, 1, 1, 1) * batch.draw.normal("matching/epsilon", *batch.shape)
    through, adversary = numbers.gradient == "expanded", numbers.weight_generator > 0

    def real(noisy: torch.Tensor) -> tuple[torch.Tensor]:
        with torch.set_grad_enabled(through):  # no graph that nothing reads
            return (nets["teacher"](noisy, sigma, labels),)

    def fake(noisy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.set_grad_enabled(through or adversary):
            denoised, features = net.both(noisy, sigma, labels)
            return denoised, net.head(features)

    def loss(x, real, fake, logits):
        matching = LOSSES[numbers.gradient](x, real, fake, logits.detach(), sigma, interval, numbers)
        own = numbers.weight_generator * adversarial.generator_loss(logits) if adversary else matching.new_zeros(())
        return matching + own, matching, own

    (_, matching, own), gradient = score.pull(loss, real, fake, images(), shift, sequential=False)
    terms = {"matching": AtImages(matching.detach(), gradient)}
    return {**terms, "adversarial": AtImages(own.detach(), None)} if adversary else terms


def levels(batch: Batch, numbers: Numbers) -> tuple[torch.Tensor, torch.Tensor]:
    """(sigma, the interval of noise levels that it is in), each [n]; sigma as in score.matching."""
    low, high = round(numbers.low * numbers.bins), min(round(numbers.high * numbers.bins), numbers.bins - 1)
    sigma = score.grid_sigma(batch, "matching/sigma", numbers.bins, low, high)
    entry = batch.draw.integers("matching/sigma", high - low + 1)  # the numbers that sigma is made of
    return sigma, entry * numbers.intervals // (high - low + 1)


def weighted(x, real, fake, logits, sigma, interval, numbers: Numbers) -> torch.Tensor:
    """<sg[h (D_psi - D_phi) / w], x> over all entries, a scalar: its gradient at x is the direction itself."""
    h, _ = weights(logits.flatten(), interval, numbers)
    direction = h.reshape(-1, 1, 1, 1) * (fake - real) / _scale(x, real)
    return (direction.detach() * x).sum() / x.numel()


def expanded(x, real, fake, logits, sigma, interval, numbers: Numbers) -> torch.Tensor:
    """(h Delta . (D_psi - x) + (h - r h') |Delta|^2 / 2) / w over all entries, a scalar."""
    difference = real - fake
    ratio = logits.flatten()
    if numbers.through_ratio:
        slope = difference.detach() / sigma.reshape(-1, 1, 1, 1) ** 2  # of ln r, at x_t and so at x
        ratio = ratio + (slope * (x - x.detach())).sum(dim=(1, 2, 3))
    h, k = (each.reshape(-1, 1, 1, 1) for each in weights(ratio, interval, numbers))
    return ((h * difference * (fake - x) + k * difference**2 / 2) / _scale(x, real)).sum() / x.numel()


LOSSES = {"weighted": weighted, "expanded": expanded}


def _scale(x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    # mean |x - D_phi|, [n, 1, 1, 1], without gradient; where it is 0 so is D_phi - x, and 0 / tiny has no direction.
    scale = (x - real).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)


def weights(log_ratio: torch.Tensor, interval: torch.Tensor, numbers: Numbers) -> tuple[torch.Tensor, torch.Tensor]:
    """(h, h - r h') of each image, [n] each, in float32 or better; log_ratio [n], interval: integers [n] from 0.

    With `unit_means` r is divided by its mean over the images of a group in one interval, and both by the group's mean of
    h; the means are held. A clipped r has no gradient.
    """
    log_ratio = log_ratio.to(torch.promote_types(log_ratio.dtype, torch.float32))
    ratio = log_ratio.clamp(math.log(numbers.ratio_min), math.log(numbers.ratio_max)).exp()
    if not numbers.unit_means:
        return DIVERGENCES[numbers.divergence](ratio)
    member = torch.arange(len(ratio), device=ratio.device) // numbers.group
    ratio = ratio / _means(ratio.detach(), member * numbers.intervals + interval)
    h, k = DIVERGENCES[numbers.divergence](ratio)
    mean = _means(h.detach(), member)
    return h / mean, k / mean


def _means(values: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    # For each value, [n], the mean of those of its part. By a matrix: sums by index differ from run to run on a GPU. A NaN
    # spreads to all images of a micro-batch.
    same = (part[:, None] == part[None]).to(values.dtype)
    return (same * values).sum(dim=1) / same.sum(dim=1)


def passes(numbers: Numbers, encoder: float) -> float:
    """Network passes for each image of a step, in forward passes; encoder: the share of one that the encoder takes."""
    extra = 2 if numbers.gradient == "expanded" else encoder * (numbers.weight_generator > 0)
    return (4 * numbers.every + 4 + extra + 6 * numbers.every * encoder + (numbers.images == "fresh")) / numbers.every


def passes_of(numbers: Numbers) -> dict[str, float]:
    """Those of generator and teacher among them."""
    teacher = 2 if numbers.gradient == "expanded" else 1
    generator = numbers.every + 2 + (numbers.images == "fresh")
    return {"generator": generator / numbers.every, "teacher": teacher / numbers.every}
