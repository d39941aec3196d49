# SPDX-License-Identifier: Apache-2.0
"""The Embedding Loss as a `torch.nn.Module` for training loops outside this package; `eldistill.EmbeddingLoss`.

It needs no project, no files and none of the packages of the workflow. The value is that of supplements/embedding.py,
and the random networks are drawn and calibrated by ensemble/seed.py, on the CPU whatever the device of the images, so
that an ensemble does not depend on the machine. docs/other-loops.md shows how to call it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from eldistill import contract
from eldistill.data.given import GivenImages, class_numbers, unlike_units
from eldistill.diffusion import augment
from eldistill.diffusion.draws import Draw, sent
from eldistill.ensemble.anchors import Anchor
from eldistill.ensemble.frozen import FrozenMember
from eldistill.ensemble.members import draw_members, fingerprint
from eldistill.ensemble.seed import Ensemble, calibrate_ensemble
from eldistill.errors import Problem
from eldistill.files import parse_json
from eldistill.numbers import declared
from eldistill.plan.ensembles import ensemble_section
from eldistill.plan.schema import Wrong, check_value
from eldistill.supplements import embedding
from eldistill.training import processes

LARGEST_STATE = 2**24  # bytes of the JSON text in a state_dict; conv4's has about 2,000


class EmbeddingLoss(torch.nn.Module):
    """The Embedding Loss between generated and real images, for any training loop.

        loss = EmbeddingLoss(torch.randint(256, (64, 1, 8, 8)).to(torch.uint8), limits=(-1, 1), seed=0)
        fake = (2 * torch.rand(16, 1, 8, 8) - 1).requires_grad_()   # generated images, uniform noise here
        value = loss(fake)                                          # scalar; against 16 of the 64 real images
        value.backward()
        assert value > 0 and fake.grad.isfinite().all()

    Args:
        real_images: [n, c, h, w], uint8 or floating point, on any device. They calibrate the ensemble, and batches of
            them are compared with generated images. They are not copied and not part of the state_dict.
        ensemble: a name (conv4, identity, mix8-8 …), a dict like a section `ensemble` of params.yaml, or its members.
        seed: of the networks, of the real images that are drawn, and of the augmentation.
        real_labels: classes of real_images, int64 [n] or one-hot [n, L]; needed to draw with labels other than marginal.
        limits: values that 0 and 255 of uint8 images have among the generated ones, such as (-1, 1); None: 0 and 255.
        mean, sigma_data: the networks see (images - mean) / sigma_data. None: mean and standard deviation of all values
            of real_images. EDM's convention for images in -1 … 1 is mean=0, sigma_data=0.5.
        kernel, estimator, labels, real_ratio, anchored, augmentation, stack: as in `python -m eldistill distil --help`
            (supplements/embedding.py). real_ratio counts only where the loss draws the real images.
        across: True, or a group of torch.distributed: the value is that of the images of all processes together, the
            same in each. False: every process has a value of its own, against real images of its own.
        reduce: what the loop does with the gradients of several processes: mean (DistributedDataParallel, FSDP,
            Accelerate) or sum. With `across`, gradients are scaled so that the result is that of the complete batch.

    Generated images are in the units of real_images, after `limits`. There are no parameters. The weights of the networks
    are buffers, so that the module moves and is copied like any other, and a state_dict holds what is needed even if a
    later version drew other numbers; loading it checks them against their fingerprints. Scales, bandwidths and the
    counters of the random numbers are in it too, so that a resumed training continues with the same real images.

    Raises Problem for arguments that do not fit, and NonFinite for real images that are not finite.
    """

    def __init__(
        self, real_images: torch.Tensor, ensemble: str | dict | list = "conv4", seed: int = 0, *,
        real_labels: torch.Tensor | None = None, limits: tuple[float, float] | None = None, mean: float | None = None,
        sigma_data: float | None = None, kernel: str = "rbf", estimator: str = "unbiased", labels: str = "marginal",
        real_ratio: int = 1, anchored: bool = False, augmentation: Sequence[str] = (), stack: str = "auto",
        across: Any = False, reduce: str = "mean",
    ):  # fmt: skip
        super().__init__()
        self.options = _checked_options(
            kernel=kernel, estimator=estimator, labels=labels, real_ratio=real_ratio, anchored=anchored,
            augmentation=list(augmentation), stack=stack,
        )  # fmt: skip
        if reduce not in ("mean", "sum"):
            raise Problem(f"EmbeddingLoss: reduce is {reduce!r}; expected mean or sum")
        self.reduce, self.held_group = reduce, _Group(across)
        self.reals = GivenImages(real_images, real_labels, limits, mean, sigma_data)
        self.mean, self.sigma_data = self.reals.mean, self.reals.sigma_data
        self.calls, self.drawn, self.redrawn = 0, 0, 0  # forward passes, real images drawn, the members' draw
        self.known: list[int] = []  # the member of each buffer anchor_…
        self.compared = False  # whether all processes are known to have the same calibration
        self.register_buffer("like", torch.zeros(()), persistent=False)  # shows device and precision
        section = _section(ensemble, anchored)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise Problem(f"EmbeddingLoss: seed is {seed!r}; expected a whole number ≥ 0")
        made = Ensemble(None, held=calibrate_ensemble(section, seed, self.reals))
        self.record = made.record
        self.members = torch.nn.ModuleList(FrozenMember(member) for member in made.at(0))
        for k, anchor in enumerate(made.anchored(kernel, self.reals)[0] if anchored else []):
            for part in (
                (anchor,)
                if kernel == "linear"
                else (anchor.points, anchor.weights, torch.tensor(anchor.within, dtype=torch.float64))
            ):
                self.register_buffer(f"anchor_{len(self.known)}", part)
                self.known.append(k)
        self.register_load_state_dict_post_hook(_check_weights)

    def forward(
        self, fake: torch.Tensor, real: torch.Tensor | None = None, labels: torch.Tensor | None = None,
        real_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The loss of generated images, a scalar of at least float32, with a gradient at `fake`.

        fake: [m, c, h, w], floating point. real: [n, c, h, w], uint8 or floating point, in the same units; without it,
        m * real_ratio of real_images are drawn with replacement, others in each call; not used with anchored. labels,
        real_labels: classes of fake and real, int64 [m] and [n] or one-hot [m, L] and [n, L], for labels other than
        marginal. A NaN in an image makes the value NaN. Raises Problem for images of another shape or
        device, missing labels, or fewer images than the estimator needs.
        """
        with torch.autocast(self.like.device.type, enabled=False):  # sums of a kernel need float32
            members, transform, real, classes, across = self._begin(fake, real, labels, real_labels)
            value = embedding.embedding_loss(
                members, self._encoded(fake), None if real is None else self._encoded(real), self.options["kernel"],
                self.options["estimator"], transform, labels=self.options["labels"], classes=classes,
                anchors=self._anchors(), stack=self._stacked(), across=across,
            )  # fmt: skip
        if across is None or self.reduce == "sum":
            return value
        # The loop divides the sum of the gradients of all processes by their number.
        return value.detach() + across.size * (value - value.detach())

    def extra_repr(self) -> str:
        """What print() shows."""
        shown = (f"{key}={value!r}" for key, value in self.options.items())
        return f"seed={self.record['seed']}, mean={self.mean:g}, sigma_data={self.sigma_data:g}, {', '.join(shown)}"

    # --- one call ---

    @torch.compiler.disable
    def _begin(self, fake: torch.Tensor, real: torch.Tensor | None, labels, real_labels) -> tuple:
        # Checks and counters of a call: (members, transform, real images, classes, processes). They move on after the checks.
        self._check("fake", fake)
        across, drawn, call = self.held_group.processes(), 0, self.calls
        self._check_first(fake, across)
        if self.options["anchored"] and real is not None:
            raise Problem("EmbeddingLoss: real is given, but anchored=True compares with all real_images; omit real")
        if real is not None:
            self._check("real", real)
        elif not self.options["anchored"]:
            real, real_labels, drawn = self._draw_real(len(fake), across)
        classes = self._classes(fake, real, labels, real_labels)
        if (every := self.record["redraw"]) and call // every != self.redrawn:
            self._redraw(call // every)
        self.calls, self.drawn = call + 1, self.drawn + drawn
        operations = self.options["augmentation"]
        transform = augment.siamese(self.record["seed"], call, operations) if operations else None
        return [member.member() for member in self.members], transform, real, classes, across

    def _draw_real(self, count: int, across) -> tuple[torch.Tensor, torch.Tensor | None, int]:
        # Real images, their classes, and the images of the complete batch. Random numbers belong to images of that batch,
        # so that the number of processes changes nothing.
        before, total, scope = 0, count, "embedding-loss"
        if across is not None:
            counts = across.gather(torch.tensor([count], device=self.like.device)).tolist()
            before, total = sum(counts[: across.rank]), sum(counts)
        elif (rank := _rank()) > 0:
            scope = f"embedding-loss/{rank}"  # processes with values of their own draw images of their own
        draw = Draw(self.record["seed"], scope, self.drawn + before, count)
        index = draw.integers("real", len(self.reals), self.options["real_ratio"]).reshape(-1)
        return *self.reals.rows(index, self.like.device), total

    def _check_first(self, fake: torch.Tensor, across) -> None:
        # What is looked at once, because it waits for the device or for other processes.
        if self.calls == 0:
            self._warn_of_units(fake)
        if across is not None and not self.compared:
            self._check_processes(across)

    def _check_processes(self, across) -> None:
        # Features that are scaled differently cannot be compared, and the value would be wrong without a sign of it.
        own = torch.frombuffer(bytearray(hashlib.sha256(self._text().encode()).digest()), dtype=torch.uint8)
        if len(across.gather(own[None].to(self.like.device)).unique(dim=0)) > 1:
            raise Problem("EmbeddingLoss: the processes have different calibrations or counters; give all of them the same real_images, "
                          "arguments and state_dict")  # fmt: skip
        self.compared = True

    def _redraw(self, number: int) -> None:
        section, shape = self.record["section"], tuple(self.record["shape"])
        for frozen, member in zip(self.members, draw_members(section, self.record["seed"], number, shape), strict=True):
            frozen.overwrite(member.weights)
        self.redrawn = number

    def _check(self, name: str, images: torch.Tensor) -> None:
        shape = tuple(self.record["shape"])
        if not isinstance(images, torch.Tensor):
            raise Problem(f"EmbeddingLoss: {name} is {type(images).__name__}; expected a tensor [n, c, h, w]")
        if images.ndim != 4 or tuple(images.shape[1:]) != shape:
            raise Problem(
                f"EmbeddingLoss: {name} has the shape {list(images.shape)}; expected [n, {str(list(shape))[1:]} as real_images"
            )
        if images.device != self.like.device:
            raise Problem(
                f"EmbeddingLoss: {name} is on {images.device}, the loss on {self.like.device}; type loss.to({name}.device)"
            )

    def _encoded(self, images: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(self.like.dtype, torch.float32)
        return (self.reals.values(images, dtype) - self.mean) / self.sigma_data

    def _classes(self, fake, real, labels, real_labels) -> tuple[torch.Tensor, torch.Tensor] | None:
        if self.options["labels"] == "marginal":
            return None
        found = []
        for name, images, each in (("labels", fake, labels), ("real_labels", real, real_labels)):
            if each is None or len(each) != len(images):
                what = "no" if each is None else len(each)
                raise Problem(f"EmbeddingLoss: {what} {name} for {len(images)} images; "
                              f"labels={self.options['labels']!r} needs one for each")  # fmt: skip
            found.append(sent(class_numbers(each, name, thorough=self.calls == 0), self.like.device))
        return found[0], found[1]

    def _anchors(self) -> list[torch.Tensor] | list[Anchor] | None:
        if not self.options["anchored"]:
            return None
        parts = [getattr(self, f"anchor_{place}") for place in range(len(self.known))]
        if self.options["kernel"] == "linear":
            return parts
        groups = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        return [Anchor(points, weights, tuple(within)) for points, weights, within in groups]

    def _stacked(self) -> bool:
        return self.options["stack"] == "stacked" or self.options["stack"] == "auto" and self.like.device.type == "cuda"

    def _warn_of_units(self, fake: torch.Tensor) -> None:
        if text := unlike_units(self.reals, fake):
            warnings.warn(f"EmbeddingLoss: {text}", stacklevel=2)

    # --- state ---

    def get_extra_state(self) -> torch.Tensor:
        """What a state_dict holds beside the buffers: JSON as uint8, because some formats of files hold tensors only."""
        return torch.frombuffer(bytearray(self._text().encode()), dtype=torch.uint8).clone()

    def _text(self) -> str:
        return json.dumps({"record": self.record, "options": self.options, "mean": self.mean, "sigma_data": self.sigma_data,
                           "calls": self.calls, "drawn": self.drawn, "redrawn": self.redrawn})  # fmt: skip

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Take over scales, bandwidths, units and counters. Raises Problem for a loss with other networks or options."""
        held = _read_state(state)
        there, here = held["record"], self.record
        for name, old, new in (
            ("options", held["options"], self.options), ("seed", there["seed"], here["seed"]),
            ("shape of images", there["shape"], here["shape"]), ("ensemble", there["section"], here["section"]),
        ):  # fmt: skip
            if old != new:
                raise Problem(
                    f"EmbeddingLoss: the state has {name} {old}, this loss {new}; make the loss with those of the state"
                )
        self.record, self.mean, self.sigma_data = there, held["mean"], held["sigma_data"]
        self.calls, self.drawn, self.redrawn, self.compared = held["calls"], held["drawn"], held["redrawn"], False
        for frozen, row in zip(self.members, there["members"], strict=True):
            frozen.calibrate(row)


class _Group:
    """The argument `across`. Copies of a loss share it, because a group of torch.distributed cannot be copied."""

    def __init__(self, across: Any):
        if isinstance(across, str | float) or (isinstance(across, int) and not isinstance(across, bool)):
            raise Problem(f"EmbeddingLoss: across is {across!r}; expected True, False or a group of torch.distributed")
        self.across = across

    def __deepcopy__(self, memo: dict) -> _Group:
        return self

    def processes(self):
        """The processes that share a batch, or None."""
        if not self.across:
            return None
        if self.across is True:
            return processes.process_group()
        return processes.ProcessGroup(self.across)


def _rank() -> int:
    group = processes.process_group()
    return 0 if group is None else group.rank


def _checked_options(**options: Any) -> dict[str, Any]:
    known = declared("supplements", "embedding")
    try:
        for key, value in options.items():
            check_value(value, known[key], key, {})
    except Wrong as wrong:
        raise Problem(f"EmbeddingLoss: {wrong.where} {wrong.text}") from None
    fits = options["labels"] == "marginal" and not options["augmentation"] and options["real_ratio"] == 1
    if options["anchored"] and not fits:
        raise Problem(
            "EmbeddingLoss: anchored is True; expected labels='marginal', real_ratio=1 and no augmentation with it"
        )
    return options


def _section(ensemble: str | dict | list, anchored: bool) -> dict:
    section = ensemble_section(ensemble) | {"anchor": anchored}
    families = [contract.load_module("ensemble", member["family"]) for member in section["members"]]
    if any(getattr(family, "TEACHER", False) for family in families):
        raise Problem("EmbeddingLoss: the ensemble has a member that reads a teacher; expected networks that are drawn")
    if anchored and section["redraw"]:
        raise Problem(
            f"EmbeddingLoss: anchored is True and the ensemble has redraw {section['redraw']}; expected redraw 0 with it"
        )
    return section


def _read_state(state: torch.Tensor) -> dict:
    try:
        if state.dtype != torch.uint8 or state.numel() > LARGEST_STATE:
            raise ValueError(f"{state.numel()} values of {state.dtype}")
        return parse_json(bytes(state.cpu().tolist()))
    except (ValueError, AttributeError) as error:
        raise Problem(
            f"EmbeddingLoss: the state_dict is damaged ({error}); make the loss anew from real images"
        ) from None


def _check_weights(loss: EmbeddingLoss, keys: Any) -> None:
    # After load_state_dict. Fitted weights have no fingerprint, and redrawn ones another than the first draw.
    for k, (frozen, row) in enumerate(zip(loss.members, loss.record["members"], strict=True)):
        member = frozen.member()
        exact = loss.like.dtype in (torch.float32, torch.float64) and not hasattr(member.family, "fit")
        if exact and not loss.redrawn and fingerprint(member) != row["sha256"]:
            raise Problem(
                f"EmbeddingLoss: the weights of member {k} in the state_dict are not those of its seed; make the loss anew"
            )
