# SPDX-License-Identifier: Apache-2.0
"""Names for readers: how data settings, methods, supplements, feature spaces and metrics are called in figures and tables.

The raw names of params.yaml and of metrics.json remain in CSV files, and in small print where a figure or table needs them. A name
that is not in these tables is a user's own: a variant of a known name is called after it and what it changes, which params.yaml says
(`variants`). A variant `base-ending` of which that is not known is called `Base (ending)`, and any other name stays as it is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

RECIPE = ("names", 2)  # variants are called after what they change


@dataclass(frozen=True)
class Name:
    """A name for readers. text: for headings and axes. short: for legends and cells. tex: LaTeX source, of the short name."""

    text: str
    short: str
    tex: str


def _name(text: str, short: str = "", tex: str = "") -> Name:
    return Name(text, short or text, tex or escape_tex(short or text))


def escape_tex(text: str) -> str:
    """Text as LaTeX source, in which a line may break after `_` and `/`."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "_": r"\_\allowbreak{}",
               "/": r"/\allowbreak{}", "×": r"$\times$", "–": "--"}  # fmt: skip
    return "".join(special.get(sign, f"\\{sign}" if sign in "&%$#{}" else sign) for sign in text)


DATA = {
    "digits": _name("8×8 digits"),
    "fashion-mnist": _name("Fashion-MNIST"),
    "fashion": _name("Fashion-MNIST"),
    "cifar10": _name("CIFAR-10"),
    "cifar10-cond": _name("CIFAR-10, with classes", "CIFAR-10, classes"),
    "ffhq64": _name("FFHQ 64×64"),
    "afhqv2-64": _name("AFHQv2 64×64"),
    "imagenet64": _name("ImageNet 64×64"),
    "imagenet512-s": _name("ImageNet 512×512, EDM2-S", "ImageNet 512×512"),
}
METHODS = {
    "alone": _name("no base loss", "no loss"),
    "di": _name("Diff-Instruct", "DI"),
    "dmd": _name("DMD"),
    "dmd-unpaired": _name("DMD, unpaired"),
    "dmd2": _name("DMD2"),
    "sid": _name("SiD"),
    "sim": _name("score implicit matching", "SIM"),
    "f-distill": _name("f-distill"),
    "uni-instruct": _name("Uni-Instruct"),
    "sida": _name("SiDA"),
    "sid2a": _name("SiD, then SiDA", "SiD²A", "SiD\\textsuperscript{2}A"),
    "cd": _name("consistency distillation", "CD"),
    "ct": _name("consistency training", "CT"),
    "ict": _name("improved consistency training", "iCT"),
    "ect": _name("easy consistency tuning", "ECT"),
    "scd": _name("continuous-time consistency distillation", "sCD"),
    "sct": _name("continuous-time consistency training", "sCT"),
    "mean-flow": _name("MeanFlow"),
    "mean-flow-cd": _name("MeanFlow along the teacher's flow", "MeanFlow, teacher"),
    "tcm": _name("truncated consistency model", "TCM"),
    "tcm-ect": _name("truncated consistency model after ECT", "ECT, then TCM"),
}
SUPPLEMENTS = {
    "none": _name("no supplement"),
    "el": _name("Embedding Loss (EL)", "EL"),
    "pixel-mmd": _name("MMD on pixels (control)", "pixel MMD"),
    "pixel": _name("MMD on pixels (control)", "pixel MMD"),
    "regression": _name("regression loss", "regression"),
    "fd": _name("Fréchet distance loss", "FD loss"),
    "drift": _name("drifting field", "drifting"),
    "gan": _name("adversarial loss", "GAN"),
}
SPACES = {
    "judge-a": _name("judge A"),
    "judge-b": _name("judge B"),
    "pixels": _name("pixels"),
    "inception": _name("Inception-v3", "Inception"),
    "inception-clean": _name("Inception-v3 (clean-fid)", "Inception (clean)"),
    "clip": _name("CLIP"),
    "efficientnet": _name("EfficientNet"),
}
PARTS = {"heldout": _name("held-out images", "held-out"), "train": _name("train images", "train")}
METRICS = {
    "fd": _name("Fréchet distance", "FD"),
    "relfd": _name("Fréchet distance over the trace of the real covariance", "relative FD"),
    "fdj": _name("Fréchet distance without the bias of finite samples", "FD, unbiased"),
    "fdse": _name("standard error of the unbiased Fréchet distance", "FD, std. error"),
    "kid": _name("kernel distance (KID)", "KID"),
    "precision": _name("precision"),
    "recall": _name("recall"),
    "density": _name("density"),
    "coverage": _name("coverage"),
    "copied": _name("copies of train images beyond chance", "copied"),
    "is": _name("Inception score", "IS"),
    "agreement": _name("images of the class that was asked for", "class agreement"),
    "fid": _name("FID"),
    "sw": _name("sliced Wasserstein distance", "SW"),
}
LOWER = ("fd", "relfd", "fdj", "fdse", "kid", "copied", "fid", "sw")  # metrics that are better when lower
MEASURED = re.compile(r"(?P<metric>[a-z]+?)(?P<n>\d+k?)_(?P<space>.+?)(?:_(?P<part>heldout|train))?")


# {data, method or supplement: {raw name: (the name that it is like, what it changes)}}, as eldistill.plan.called makes it.
Variants = Mapping[str, Mapping[str, Sequence[str]]]
_VARIANTS: ContextVar[Variants | None] = ContextVar("variants", default=None)


@contextlib.contextmanager
def variants(found: Variants) -> Iterator[None]:
    """Context in which variants are called after what they change: `di-r2` is `DI, rates × 2`, and `el-base` is `EL`.

    found: {data, method or supplement: {raw name: (the name that it is like, what it changes)}}."""
    token = _VARIANTS.set(found)
    try:
        yield
    finally:
        _VARIANTS.reset(token)


def _parts(known: dict[str, Name], kind: str, raw: str) -> tuple[Name, str]:
    """(name, what a variant changes, or nothing). A variant is named after the longest known name that it begins with."""
    if raw in known:
        return known[raw], ""
    bases = [base for base in known if raw.startswith((f"{base}-", f"{base}_"))]
    if kind == "supplement" and raw in (f"{base}-base" for base in bases) and _VARIANTS.get() is not None:
        return known[raw.removesuffix("-base")], ""
    like, note = ((_VARIANTS.get() or {}).get(kind) or {}).get(raw, ("", ""))
    if note and (bases or raw.startswith(f"{like}-")):
        return (known[max(bases, key=len)] if bases else _parts(known, kind, like)[0]), note
    if not bases:
        return _name(raw), ""
    base = max(bases, key=len)
    ending, found = raw[len(base) + 1 :], known[base]
    return Name(f"{found.text} ({ending})", f"{found.short} ({ending})", f"{found.tex} ({escape_tex(ending)})"), ""


def _noted(found: Name, note: str) -> Name:
    if not note:
        return found
    return Name(f"{found.text}, {note}", f"{found.short}, {note}", f"{found.tex}, {escape_tex(note)}")


def data_name(raw: str) -> Name:
    """The name of a data setting; words after a comma stay: `digits, 3 teachers`, as tables call a pool of settings."""
    name, comma, pool = raw.partition(", ")
    return _noted(_noted(*_parts(DATA, "data", name)), pool if comma else "")


def method_name(raw: str) -> Name:
    """The name of a method."""
    return _noted(*_parts(METHODS, "method", raw))


def supplement_name(raw: str) -> Name:
    """The name of a supplement, or of several that are joined by `+`."""
    parts = [_supplement(part) for part in raw.split("+")]
    return Name(*(" + ".join(getattr(part, kind) for part in parts) for kind in ("text", "short", "tex")))


def _supplement(raw: str) -> Name:
    # The short name stands in names of arms, where a comma would end it.
    found, note = _parts(SUPPLEMENTS, "supplement", raw)
    if not note:
        return found
    return Name(f"{found.text}, {note}", f"{found.short} ({note})", f"{found.tex} ({escape_tex(note)})")


def space_name(raw: str) -> Name:
    """The name of a feature space."""
    return _parts(SPACES, "space", raw)[0]


def arm_name(method: str, supplement: str) -> Name:
    """The name of a method with its supplement, such as `DI + EL` or `DI + EL, rates × 2`; of the method alone for `none`."""
    (one, note), other = _parts(METHODS, "method", method), supplement_name(supplement)
    if supplement == "none":
        return _noted(one, note)
    return _noted(Name(*(f"{getattr(one, kind)} + {getattr(other, kind)}" for kind in ("text", "short", "tex"))), note)


def baseline_name(against: str) -> str:
    """The short name of the baseline of a study: a supplement, or METHOD/SUPPLEMENT."""
    method, _, supplement = against.rpartition("/")
    return arm_name(method, supplement).short if method else supplement_name(supplement).short


def arrow(metric: str) -> str:
    """`↓` for a metric that is better when lower, `↑` for any other one of METRICS, and nothing for other names."""
    return "↓" if metric in LOWER else "↑" if metric in METRICS else ""


def images(n: str) -> str:
    """The number of images in a name of a metric, `5k`, in figures for readers: `5,000`."""
    return f"{int(n.removesuffix('k')) * (1000 if n.endswith('k') else 1):,}"


def metric_name(raw: str) -> Name:
    """The name of a metric such as fd5k_judge-a_heldout: the metric, the part of the data, the features and the number of images.

    Its short name has neither the number of images nor the word `features`. Other names stay as they are."""
    match = MEASURED.fullmatch(raw)
    if match is None or match["metric"] not in METRICS:
        return _name(raw)
    metric, space = METRICS[match["metric"]], space_name(match["space"])
    part = PARTS[match["part"]] if match["part"] else None
    text = metric.text + (f" {'to' if metric.short.endswith('FD') else 'against'} {part.text}" if part else "")
    text += (
        f" ({space.text if match['space'] == 'pixels' else f'features of {space.text}'}, {images(match['n'])} images)"
    )
    return _name(text, f"{metric.short} {space.short}" + (f", {part.short}" if part else ""))
