# SPDX-License-Identifier: Apache-2.0
"""Reader of the pickles of EDM and EDM2, with teachers or students in them, which are never executed.

Classes and keywords must be in a list of supported ones, and names and shapes of tensors must match the network that they describe.
The teacher is written as a safetensors file that records its origin.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch

from eldistill import networks
from eldistill.external import pickles, weights
from eldistill.external.pickles import Network, Refused
from eldistill.files import canonical
from eldistill.networks import adm
from eldistill.teacher import agree
from eldistill.teacher.agree import PIXELS, list_of, one_of, or_none, real_number, whole_number
from eldistill.tensors import save_tensors

COVERED_BY = "teacher/convert"

# --- supported classes and keywords ----------------------------------------------------------------------

COMMON = {
    "img_resolution": whole_number(4, 1024), "img_channels": whole_number(1, 16), "label_dim": whole_number(0, 100_000),
    "model_channels": whole_number(1, 1024), "channel_mult": list_of(whole_number(1, 16)), "num_blocks": whole_number(1, 16),
    "attn_resolutions": lambda value: value == [] or list_of(whole_number(1, 1024))(value), "dropout": real_number(0, 1),
    "sigma_data": real_number(1e-3, 1e3), "use_fp16": lambda value: isinstance(value, bool),
}  # fmt: skip
EDM = COMMON | {
    "model_type": lambda value: isinstance(value, str), "augment_dim": whole_number(0, 64), "channel_mult_emb": whole_number(1, 16),
    "sigma_min": real_number(0, 1e3), "sigma_max": real_number(1e-3, math.inf), "label_dropout": real_number(0, 1),
}  # fmt: skip
SONG = EDM | {
    "channel_mult_noise": whole_number(1, 16), "embedding_type": one_of("positional", "fourier"),
    "encoder_type": one_of("standard", "residual"), "decoder_type": one_of("standard"), "resample_filter": list_of(whole_number(1, 64)),
}  # fmt: skip
# EDM's baselines. The limits of vp follow from its process.
PROCESS = {
    "beta_d": real_number(1e-3, 1e3), "beta_min": real_number(1e-6, 1e3), "epsilon_t": real_number(1e-9, 0.5),
    "M": whole_number(2, 100_000),
}  # fmt: skip
VP = {key: value for key, value in (SONG | PROCESS).items() if key not in ("sigma_min", "sigma_max", "sigma_data")}
VE = {key: value for key, value in SONG.items() if key != "sigma_data"}
EDM2 = COMMON | {
    "channel_mult_noise": or_none(whole_number(1, 16)), "channel_mult_emb": or_none(whole_number(1, 16)),
    "resample_filter": list_of(whole_number(1, 64)),
    "channels_per_head": whole_number(1, 1024), "clip_act": real_number(1e-3, 1e9), "logvar_channels": whole_number(2, 4096),
    **dict.fromkeys(("label_balance", "concat_balance", "res_balance", "attn_balance"), real_number(0, 1)),
}  # fmt: skip
# force_normalization and use_gan affect only training, not the trained generator.
EDM2_STUDENT = EDM2 | {"force_normalization": one_of(True, False), "use_gan": one_of(True, False)}
# {(class of the whole network, class of the U-Net in it): (file in networks/, its supported keywords)}
CLASSES = {
    ("EDMPrecond", "SongUNet"): ("song", SONG),
    ("EDMPrecond", "DhariwalUNet"): ("adm", EDM),
    ("Precond", "UNet"): ("edm2", EDM2),
    **{
        (f"{process.upper()}Precond", inner): ("baselines", allowed)
        for process, allowed in (("vp", VP), ("ve", VE))
        for inner in ("SongUNet", "DhariwalUNet")
    },
    # Consistency models of ECT: EDM's network, whose output is the image itself at sigma_min.
    ("ECMPrecond", "SongUNet"): ("song", SONG),
    ("ECMPrecond", "DhariwalUNet"): ("adm", EDM),
    # One-step generators of SiDA and SiD2A. Their discriminator is the mean over channels of the encoder's last output and has no
    # weights, so that their tensors are those of the plain network. EDM2's generators lack the weights for the loss uncertainty.
    ("EDMPrecond_EncoderDecoder", "SongUNet_EncoderDecoder"): ("song", SONG),
    ("EDMPrecond_EncoderDecoder", "DhariwalUNet_EncoderDecoder"): ("adm", EDM),
    ("EDM_2_Precond_Generator", "UNet_EncoderDecoder"): ("edm2", EDM2_STUDENT),
}
ONE_STEP = "a one-step generator of SiDA or SiD2A"
# Classes of networks that are not teachers.
STUDENTS = {
    "EDMPrecond_EncoderDecoder": ONE_STEP, "EDM_2_Precond_Generator": ONE_STEP, "ECMPrecond": "a consistency model of ECT",
}  # fmt: skip
ECT_SIGMA_MIN = 0.003  # ECMPrecond's default
# Keywords that have only one value, or do not affect a trained network.
UNUSED = ("model_type", "use_fp16", "decoder_type", "label_dropout", "force_normalization", "use_gan")
# Classes of EDM and its relatives that are known and not supported, and what to give in their place.
KNOWN = {
    "iDDPMPrecond": "is EDM's baseline of improved DDPM, which knows 1,000 fixed noise levels only; give edm-imagenet-64x64-cond-adm",
    "EDM_2_Precond_EncoderDecoder": "is the fake score of a training of SiDA; give the teacher that it started from",
    "Generator": "is a generator of StyleGAN, which denoises nothing; give a network of EDM or EDM2",
    "Discriminator": "is a discriminator of StyleGAN; give a network of EDM or EDM2",
}  # fmt: skip


def _known(found: Network) -> tuple[str, dict]:
    """The file in networks/ and the supported keywords for the two classes of a network. Raises Refused for other classes."""
    inner = next((found.classes[prefix] for prefix in ("model", "unet") if prefix in found.classes), None)
    if found.class_name in KNOWN:
        raise Refused(f"a network {found.class_name!r}, which {KNOWN[found.class_name]}")
    if (found.class_name, inner) not in CLASSES:
        raise Refused(f"a network {found.class_name[:40]!r} of a {str(inner)[:40]!r}; expected {_supported()}")
    if (said := found.kwargs.get("model_type", inner)) != inner:
        raise Refused(f"its model_type is {repr(said)[:60]}, but its U-Net is of the class {str(inner)[:40]!r}")
    return CLASSES[found.class_name, inner]


def _supported() -> str:
    """CLASSES in words; classes of the same U-Nets are named together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for outer in dict.fromkeys(outer for outer, _ in CLASSES):
        groups.setdefault(tuple(inner for each, inner in CLASSES if each == outer), []).append(outer)
    return ", ".join(f"{' or '.join(outers)} of a {' or '.join(inners)}" for inners, outers in groups.items())


def read_configuration(found: Network) -> dict:
    """The `config` of networks.build for the network in a file. Raises Refused for a class, a keyword or a value that is not
    supported."""
    name, allowed = _known(found)
    for key, value in found.kwargs.items():
        if key not in allowed:
            raise Refused(f"its keyword {key[:40]!r} is none of {', '.join(sorted(allowed))}")
        if not allowed[key](value):
            raise Refused(f"its {key} is {repr(value)[:60]}, which no supported network has")
    for source, what in ((found.attributes, "attribute"), (found.inner_kwargs, "inner network's")):
        for key in found.kwargs.keys() & source.keys() - {"use_fp16"}:
            if source[key] != found.kwargs[key]:
                raise Refused(
                    f"its keyword {key} is {repr(found.kwargs[key])[:40]}, but its {what} {key} is {repr(source[key])[:40]}"
                )
    settings = {key: value for key, value in found.kwargs.items() if key not in UNUSED}
    if settings.get("sigma_max") == math.inf:
        settings["sigma_max"] = None
    if found.class_name == "EDM_2_Precond_Generator":
        settings["logvar_channels"] = 0
    if found.class_name == "ECMPrecond":
        settings.setdefault("sigma_min", ECT_SIGMA_MIN)
    if name == "baselines":
        settings = _baseline(found.class_name, found.classes["model"], settings)
    return {"network": name, **settings}


def _baseline(outer: str, inner: str, settings: dict) -> dict:
    """Settings of networks/baselines.py. DhariwalUNet has other defaults than SongUNet."""
    unet = "song" if inner == "SongUNet" else "adm"
    if unet == "adm":
        keys = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions")
        settings = {
            key: list(each) if isinstance(each := getattr(adm.Settings, key), tuple) else each for key in keys
        } | settings
    if "M" in settings:
        settings["steps"] = settings.pop("M")
    return {"process": outer[:2].lower(), "unet": unet, **settings}


def check_network(found: Network) -> dict:
    """The complete configuration of the network in a file, whose tensors are checked: names, order, shapes and finite numbers.

    Raises Refused if they do not match. Memory of the network's size is not allocated."""
    config = read_configuration(found)
    try:
        outline = networks.outline(config)
    except (ValueError, TypeError) as error:
        raise Refused(f"its keywords do not describe a network: {error}") from None
    wanted = outline.state_dict()
    if list(wanted) != list(found.tensors):
        odd = next((a or b for a, b in itertools.zip_longest(wanted, found.tensors) if a != b), "")
        raise Refused(
            f"it has {len(found.tensors)} tensors, but its keywords need {len(wanted)}; the first difference is at {ascii(odd)[:80]}"
        )
    for name, tensor in found.tensors.items():
        if tuple(wanted[name].shape) != tensor.size or not tensor.storage.dtype.is_floating_point:
            raise Refused(
                f"its {name} is {list(tensor.size)} {tensor.storage.dtype}; expected {list(wanted[name].shape)} of floats"
            )
        if not weights.is_finite(tensor.view()):
            raise Refused(f"its {name} is not finite")
    return outline.config


def build_network(found: Network) -> torch.nn.Module:
    """The network in a file, in float32 and frozen. Raises Refused as `check_network` does."""
    network = networks.build(check_network(found))
    network.load_state_dict(found.state())
    return network.requires_grad_(False).eval()


# --- the file ---------------------------------------------------------------------------------------------


def codec_of(file: pickles.File) -> dict | None:
    """The constants {scale, bias} of EDM2's latents, a list with one number for each channel; None if the file has none.

    Raises Refused for constants that are not a few finite numbers."""
    encoder = file.value.get("encoder") if isinstance(file.value, dict) else None
    if not isinstance(encoder, pickles.Record) or encoder.class_name != "StabilityVAEEncoder":
        return None
    found = {}
    for key in ("scale", "bias"):
        value = encoder.state.get(key)
        numbers = file.plain(value).reshape(-1) if isinstance(value, pickles.Array) else np.zeros(0)
        if not 1 <= len(numbers) <= 64 or numbers.dtype.kind != "f" or not np.isfinite(numbers).all():
            raise Refused(
                f"{file.path} has a {key} of its latents that is not a list of at most 64 finite numbers; fetch it again"
            )
        found[key] = numbers.tolist()
    if len(found["scale"]) != len(found["bias"]) or min(found["scale"]) <= 0:
        raise Refused(
            f"{file.path} has scales of its latents that are not one positive number for each bias; fetch it again"
        )
    return found


def _told(file: pickles.File) -> dict | None:
    """The settings of the training data that the file records, or None."""
    found = file.plain(file.value.get("dataset_kwargs"), pickles.SETTINGS) if isinstance(file.value, dict) else None
    try:
        json.dumps(found, allow_nan=False).encode("utf-8")
        canonical(found).encode("utf-8")
    except (TypeError, ValueError):  # arrays, infinities, incomplete surrogate pairs
        raise Refused(
            f"{file.path} has dataset_kwargs that cannot be written as JSON; fetch it again, or give another file"
        ) from None
    return found


def convert_pickle(
    source: Path, output: Path, sha256: str | None = None, licence: str | None = None, labels: bool | None = None,
    codec: dict | None = None,
) -> dict:  # fmt: skip
    """Write the network of a pickle as a teacher; returns its description.

    The tensors keep the precision of the file. licence: of the source, for the description. labels: whether the network must have
    classes; None accepts both. codec: of the data setting, which must match the file; None means pixels. Raises Refused if the
    network is not supported or does not match; nothing is written then.
    """
    with pickles.read_network_file(source, sha256) as file:
        found = file.network()
        if found.class_name in STUDENTS:
            raise Refused(
                f"{source} holds a {found.class_name}, {STUDENTS[found.class_name]}; expected a teacher, which denoises all noise "
                "levels: give the network that its training started from"
            )
        try:
            config = check_network(found)
        except Refused as error:
            raise Refused(
                f"{source} holds a network that is not supported ({error}); give one of EDM or EDM2"
            ) from None
        channels, side = config["img_channels"], config["img_resolution"]
        about = {
            "config": config, "codec": codec or PIXELS, "shape": [channels, side, side], "label_dim": config["label_dim"],
            "source": {
                "name": source.name, "sha256": file.sha256, "bytes": file.bytes, "class": found.class_name,
                "kwargs": {key: None if value == math.inf else value for key, value in found.kwargs.items()},
                "module_sha256": found.source_sha256, "licence": licence, "latents": codec_of(file),
                "dataset_kwargs": _told(file),
            },
        }  # fmt: skip
        agree.check_labels(source, about["label_dim"], labels)
        if codec is not None:
            agree.check_codec(source, codec, about["source"]["latents"], channels)
        save_tensors(output, {name: tensor.view() for name, tensor in found.tensors.items()}, about)
    return about
