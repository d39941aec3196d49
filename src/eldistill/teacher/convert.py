# SPDX-License-Identifier: Apache-2.0
"""A published network becomes a teacher of ours: its class and keywords through a list of what may be, its numbers
through a strict comparison of names and shapes, and then a safetensors file that says where it comes from."""

from __future__ import annotations

import itertools
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from eldistill import fetching, latents, listing, networks
from eldistill.files import Problem, canonical, load_tensors, save_tensors
from eldistill.files import sha256 as sha256_of
from eldistill.networks import guided
from eldistill.teacher import pickles, train
from eldistill.teacher.pickles import Network, Refused

VERSION = 1
PIXELS = {"mean": 0.5, "std": 0.25}  # the codec of EDM's range: u / 127.5 - 1

# --- what may be said of a network -----------------------------------------------------------------------


def _int(low: int, high: int) -> Callable:
    return lambda value: type(value) is int and low <= value <= high


def _float(low: float, high: float) -> Callable:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _list(each: Callable) -> Callable:
    return lambda value: isinstance(value, list) and 1 <= len(value) <= 8 and all(map(each, value))


def _or_none(each: Callable) -> Callable:
    return lambda value: value is None or each(value)


def _among(*choices) -> Callable:
    return lambda value: type(value) in (str, int, float, bool) and value in choices


COMMON = {
    "img_resolution": _int(4, 1024), "img_channels": _int(1, 16), "label_dim": _int(0, 100_000),
    "model_channels": _int(1, 1024), "channel_mult": _list(_int(1, 16)), "num_blocks": _int(1, 16),
    "attn_resolutions": lambda value: value == [] or _list(_int(1, 1024))(value), "dropout": _float(0, 1),
    "sigma_data": _float(1e-3, 1e3), "use_fp16": lambda value: isinstance(value, bool),
}  # fmt: skip
EDM = COMMON | {
    "model_type": _among("SongUNet", "DhariwalUNet"), "augment_dim": _int(0, 64), "channel_mult_emb": _int(1, 16),
    "sigma_min": _float(0, 1e3), "sigma_max": _float(1e-3, math.inf), "label_dropout": _among(0),
}  # fmt: skip
SONG = EDM | {
    "channel_mult_noise": _int(1, 16), "embedding_type": _among("positional", "fourier"),
    "encoder_type": _among("standard", "residual"), "decoder_type": _among("standard"), "resample_filter": _list(_int(1, 64)),
}  # fmt: skip
EDM2 = COMMON | {
    "channel_mult_noise": _or_none(_int(1, 16)), "channel_mult_emb": _or_none(_int(1, 16)), "resample_filter": _list(_int(1, 64)),
    "channels_per_head": _int(1, 1024), "clip_act": _float(1e-3, 1e9), "logvar_channels": _int(2, 4096),
    **dict.fromkeys(("label_balance", "concat_balance", "res_balance", "attn_balance"), _float(0, 1)),
}  # fmt: skip
UNUSED = ("model_type", "use_fp16", "decoder_type", "label_dropout")  # have one value, or mean nothing here


def configuration(found: Network) -> dict:
    """The `config` of networks.build for a network of a file. Raises Refused for a class, a keyword or a value that no
    published network has."""
    if found.class_name == "EDMPrecond":
        kind = found.kwargs.get("model_type", "DhariwalUNet")
        name, allowed = {"SongUNet": ("song", SONG), "DhariwalUNet": ("adm", EDM)}.get(str(kind), (None, {}))
    else:
        name, allowed = ("edm2", EDM2) if found.class_name == "Precond" else (None, {})
    if name is None:
        raise Refused(
            f"a network {found.class_name[:40]!r}; expected EDMPrecond of a SongUNet or DhariwalUNet, or Precond of EDM2"
        )
    for key, value in found.kwargs.items():
        if key not in allowed:
            raise Refused(f"its keyword {key[:40]!r} is none of {', '.join(sorted(allowed))}")
        if not allowed[key](value):
            raise Refused(f"its {key} is {repr(value)[:60]}, which no published network has")
    for source, what in ((found.attributes, "attribute"), (found.inner_kwargs, "inner network's")):
        for key in found.kwargs.keys() & source.keys() - {"use_fp16"}:
            if source[key] != found.kwargs[key]:
                raise Refused(
                    f"its keyword {key} is {repr(found.kwargs[key])[:40]}, its {what} {key} {repr(source[key])[:40]}"
                )
    settings = {key: value for key, value in found.kwargs.items() if key not in UNUSED}
    if settings.get("sigma_max") == math.inf:
        settings["sigma_max"] = None
    return {"network": name, **settings}


def check(found: Network) -> dict:
    """The complete configuration of a network of a file, whose tensors have the names, the order and the shapes that it
    asks for, and finite numbers. Raises Refused; nothing of the network's size is allocated."""
    config = configuration(found)
    try:
        outline = networks.outline(config)
    except (ValueError, TypeError) as error:
        raise Refused(f"its keywords describe no network: {error}") from None
    wanted = outline.state_dict()
    if list(wanted) != list(found.tensors):
        odd = next((a or b for a, b in itertools.zip_longest(wanted, found.tensors) if a != b), "")
        raise Refused(
            f"it has {len(found.tensors)} tensors, its keywords ask for {len(wanted)}; the first other one is {ascii(odd)[:80]}"
        )
    for name, tensor in found.tensors.items():
        if tuple(wanted[name].shape) != tensor.size or not tensor.storage.dtype.is_floating_point:
            raise Refused(
                f"its {name} is {list(tensor.size)} {tensor.storage.dtype}; expected {list(wanted[name].shape)} of floats"
            )
        if not _finite(tensor.view()):
            raise Refused(f"its {name} is not finite")
    return outline.config


def _finite(numbers: torch.Tensor) -> bool:
    # A NaN or an infinity is in the sum too, which takes a tenth of the time; a sum may overflow where none is.
    total = numbers.sum(dtype=torch.float64 if numbers.dtype == torch.float64 else torch.float32)
    return bool(total.isfinite()) or bool(numbers.isfinite().all())


def build(found: Network) -> torch.nn.Module:
    """The network of a file, in float32, frozen. Raises Refused as `check` does."""
    network = networks.build(check(found))
    network.load_state_dict(found.state())
    return network.requires_grad_(False).eval()


# --- the file ---------------------------------------------------------------------------------------------


def codec_of(file: pickles.File) -> dict | None:
    """The constants of EDM2's latents, {scale, bias}, if the file has them. Raises Refused for what cannot be such."""
    encoder = file.value.get("encoder") if isinstance(file.value, dict) else None
    if not isinstance(encoder, pickles.Record) or encoder.class_name != "StabilityVAEEncoder":
        return None
    found = {}
    for key in ("scale", "bias"):
        value = encoder.state.get(key)
        numbers = file.plain(value).reshape(-1) if isinstance(value, pickles.Array) else np.zeros(0)
        if not 1 <= len(numbers) <= 64 or numbers.dtype.kind != "f" or not np.isfinite(numbers).all():
            raise Refused(f"{file.path} has a {key} of its latents that is not a few finite numbers; fetch it again")
        found[key] = numbers.tolist()
    if len(found["scale"]) != len(found["bias"]) or min(found["scale"]) <= 0:
        raise Refused(f"{file.path} has scales of its latents that are not above 0, one for each bias; fetch it again")
    return found


def _told(file: pickles.File) -> dict | None:
    """What the file says of the data that its network was trained on."""
    found = file.plain(file.value.get("dataset_kwargs"), pickles.SETTINGS) if isinstance(file.value, dict) else None
    try:
        json.dumps(found, allow_nan=False).encode("utf-8")
        canonical(found).encode("utf-8")
    except (TypeError, ValueError):  # arrays, infinities, halves of characters
        raise Refused(
            f"{file.path} has dataset_kwargs that are no plain settings; fetch it again, or give another"
        ) from None
    return found


def convert(
    source: Path, output: Path, sha256: str | None = None, licence: str | None = None, labels: bool | None = None,
    codec: dict | None = None,
) -> dict:  # fmt: skip
    """Write the network of a pickle as a teacher; returns its description. Raises Refused; then nothing is written.

    The tensors keep the file's precision. licence: of the source, for the description. labels: whether it must know
    classes; None: either. codec: that of its data, which must be what the file says; None: pixels.
    """
    with pickles.read(source, sha256) as file:
        found = file.network()
        try:
            config = check(found)
        except Refused as error:
            raise Refused(
                f"{source} holds a network that is not understood ({error}); give one of EDM or EDM2"
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
        _agree(source, about["label_dim"], labels)
        if codec is not None:
            _agree_codec(source, codec, about["source"]["latents"], channels)
        save_tensors(output, {name: tensor.view() for name, tensor in found.tensors.items()}, about)
    return about


# --- a folder of diffusers ---------------------------------------------------------------------------------

DDPM = {
    "sample_size": _int(4, 1024), "in_channels": _int(1, 16), "out_channels": _int(1, 16),
    "block_out_channels": _list(_int(1, 4096)), "down_block_types": _list(_among("DownBlock2D", "AttnDownBlock2D")),
    "up_block_types": _list(_among("UpBlock2D", "AttnUpBlock2D")), "layers_per_block": _int(1, 16),
    "mid_block_scale_factor": _float(1e-3, 1e3), "downsample_padding": _int(0, 1), "downsample_type": _among("conv", "resnet"),
    "upsample_type": _among("conv", "resnet"), "attention_head_dim": _or_none(_int(1, 4096)), "norm_num_groups": _int(1, 1024),
    "attn_norm_num_groups": _or_none(_int(1, 1024)), "norm_eps": _float(0, 1), "freq_shift": _int(0, 1),
    "resnet_time_scale_shift": _among("default", "scale_shift"), "add_attention": _among(True, False),
    "flip_sin_to_cos": _among(True, False), "time_embedding_dim": _or_none(_int(1, 65536)),
    # Of these one value alone is understood.
    "center_input_sample": _among(False), "time_embedding_type": _among("positional"), "act_fn": _among("silu", "swish"),
    "mid_block_type": _among("UNetMidBlock2D"), "class_embed_type": lambda value: value is None,
    "num_class_embeds": lambda value: value is None, "num_train_timesteps": _or_none(_int(1, 100_000)), "dropout": _float(0, 1),
}  # fmt: skip
SCHEDULE = {
    "num_train_timesteps": _int(2, 100_000), "beta_start": _float(0, 1), "beta_end": _float(0, 1),
    "beta_schedule": _among("linear", "scaled_linear", "squaredcos_cap_v2"), "prediction_type": _among("epsilon", "v_prediction"),
    "trained_betas": _or_none(lambda value: isinstance(value, list) and 2 <= len(value) <= 100_000 and all(map(_float(0, 1), value))),
    "rescale_betas_zero_snr": _among(False),
}  # fmt: skip
FIXED = ("center_input_sample", "time_embedding_type", "act_fn", "mid_block_type", "class_embed_type", "num_class_embeds",
         "num_train_timesteps", "dropout")  # fmt: skip
RENAMED = {"sample_size": "img_resolution", "in_channels": "img_channels"}


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(
            f"{path} is missing; expected the folder of a DDPM of diffusers: `save_pretrained` writes it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} cannot be read ({error}); expected JSON as diffusers writes it") from None
    if not isinstance(found, dict):
        raise Refused(f"{path} is no mapping; expected JSON as diffusers writes it")
    return found


def folder(source: Path) -> tuple[dict, Path]:
    """The configuration and the weights of a DDPM folder of diffusers: a pipeline's, or that of its UNet2DModel with the
    scheduler's beside it. Nothing but JSON and safetensors is read. Raises Refused."""
    described, found, weights = listing.unet(source)
    values = _json(described)
    if values.get("_class_name") != "UNet2DModel":
        raise Refused(f"{described} is of {ascii(values.get('_class_name'))[:60]}; expected UNet2DModel")
    if found is None:
        raise Refused(
            f"{source} has no scheduler/scheduler_config.json, which says what noise a step has; put it there"
        )
    schedule = _json(found)
    for path, each, known in (
        (described, values, DDPM),
        (found, {k: v for k, v in schedule.items() if k in SCHEDULE}, SCHEDULE),
    ):
        for key, value in each.items():
            if key not in known and not key.startswith("_"):
                raise Refused(f"{path} has {key[:40]!r}, which no UNet2DModel that is understood has")
            if key in known and not known[key](value):
                raise Refused(f"{path} has {key} {repr(value)[:60]}; such networks are not understood")
    if values.get("in_channels", 3) != values.get("out_channels", 3) or "sample_size" not in values:
        raise Refused(f"{described} needs sample_size, and as many channels out as in")
    if not weights.exists():
        raise Refused(
            f"{weights} is missing; other files of weights are not read: `save_pretrained(safe_serialization=True)` writes it"
        )
    config = {
        RENAMED.get(key, key): value
        for key, value in values.items()
        if key in DDPM and key not in (*FIXED, "out_channels")
    }
    config |= {key: value for key, value in schedule.items() if key in SCHEDULE and key != "rescale_betas_zero_snr"}
    return {"network": "ddpm", "img_channels": 3, **config}, weights


def convert_folder(source: Path, output: Path, sha256: str | None = None) -> dict:
    """Write the network of a DDPM folder of diffusers as a teacher; returns its description. Raises Refused; then nothing
    is written. sha256: of its file of weights."""
    config, weights = folder(source)
    digest = _digest(weights, sha256)
    try:
        outline = networks.outline(config)
    except ValueError as error:
        raise Refused(f"{source} describes no network that is understood: {error}") from None
    wanted = {name: tensor.shape for name, tensor in outline.state_dict().items()}
    tensors = {f"model.unet.{name}": tensor for name, tensor in load_tensors(weights, foreign=True)[0].items()}
    if odd := sorted(wanted.keys() ^ tensors.keys()):
        raise Refused(
            f"{weights} has {len(tensors)} tensors, its config.json asks for {len(wanted)}; the first other one is {ascii(odd[0])[:80]}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name] or not tensor.is_floating_point() or not _finite(tensor):
            raise Refused(
                f"{weights}: {name} is {list(tensor.shape)} {tensor.dtype}; expected {list(wanted[name])} of finite floats"
            )
    config = outline.config
    side = config["img_resolution"]
    about = {
        "config": config, "codec": PIXELS, "shape": [config["img_channels"], side, side], "label_dim": 0,
        "source": {"name": source.name, "sha256": digest, "bytes": weights.stat().st_size, "class": "UNet2DModel", "licence": None},
    }  # fmt: skip
    save_tensors(output, {name: tensors[name] for name in wanted}, about)
    return about


# --- a state of guided-diffusion -----------------------------------------------------------------------------


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_state(path: Path) -> bool:
    """Whether a file is a zip, as torch.save writes states since 2020."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def state(source: Path, sha256: str | None = None) -> tuple[dict, dict[str, torch.Tensor], str]:
    """The configuration, the state under our names and the digest of a network of OpenAI's consistency models.

    torch reads it with weights_only: nothing in it is executed. Raises Refused.
    """
    digest = _digest(source, sha256)
    try:
        with zipfile.ZipFile(source) as archive:  # nothing that unfolds to more than the file
            if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                raise ValueError("parts of it are compressed")
        theirs = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        plain = isinstance(theirs, dict) and all(
            isinstance(key, str)
            and type(each) is torch.Tensor
            and each.layout == torch.strided
            and each.dtype in FLOATS
            for key, each in theirs.items()
        )
        if not plain or sum(each.nbytes for each in theirs.values()) > source.stat().st_size:
            raise ValueError("it is no state of floats")
        settings = guided.settings(theirs)
        outline = networks.outline({"network": "guided", **settings})
        tensors = guided.renamed(theirs, guided.Settings(**settings))
        for name, each in outline.state_dict().items():
            if name not in tensors or tensors[name].shape != each.shape or not _finite(tensors[name]):
                raise ValueError(f"{name} is missing, not {list(each.shape)}, or not finite")
    except Exception as error:  # what torch and zipfile raise for a damaged file is not written down anywhere
        text = " ".join(str(error).split())[:160]
        raise Refused(
            f"{source} is no network of OpenAI's consistency models ({text}); fetch it again, or give another"
        ) from None
    return outline.config, {name: tensors[name] for name in outline.state_dict()}, digest


def convert_state(
    source: Path, output: Path, sha256: str | None = None, licence: str | None = None, labels: bool | None = None
) -> dict:
    """Write such a network as a teacher; returns its description. Raises Refused; then nothing is written."""
    config, tensors, digest = state(source, sha256)
    _agree(source, config["label_dim"], labels)
    about = {
        "config": config, "codec": PIXELS, "shape": [config["img_channels"], *[config["img_resolution"]] * 2],
        "label_dim": config["label_dim"],
        "source": {"name": source.name, "sha256": digest, "bytes": source.stat().st_size, "class": "UNetModel", "licence": licence},
    }  # fmt: skip
    save_tensors(output, tensors, about)
    return about


def published(path: Path, sha256: str | None = None) -> tuple[torch.nn.Module, dict | None]:
    """The network of a published file of either kind, frozen, in float32, and the constants of its latents if it has them.
    Raises Refused."""
    if is_state(path):
        config, tensors, _ = state(path, sha256)
        constants = None
    else:
        with pickles.read(path, sha256) as file:
            found = file.network()
            config, tensors, constants = check(found), found.state(), codec_of(file)
    network = networks.build(config)
    network.load_state_dict(tensors)
    return network.requires_grad_(False).eval(), constants


def _digest(path: Path, wanted: str | None) -> str:
    digest = sha256_of(path)
    if wanted not in (None, digest):
        raise Refused(f"{path} has the sha256 {digest[:16]}…; expected {wanted[:16]}…: give that file, or its digest")
    return digest


def _agree(source: Path, label_dim: int, labels: bool | None) -> None:
    if labels is not None and bool(label_dim) != labels:
        raise Refused(
            f"{source} knows {label_dim} classes, its data has labels: {str(labels).lower()}; make them agree"
        )


def _agree_codec(source: Path, codec: dict, found: dict | None, channels: int) -> None:
    if not latents.has(codec):
        if found is not None:
            raise Refused(f"{source} sees latents, its data has pixels; give it a data setting with source: latents")
        return
    if channels != len(codec["mean"]):
        raise Refused(
            f"{source} sees {channels} channels, the codec of its data has {len(codec['mean'])}; make them agree"
        )
    for key, ours in zip(("scale", "bias"), latents.constants(codec), strict=True):
        theirs = None if found is None else found[key]
        same = theirs is None or len(theirs) == channels
        if not (same and (theirs is None or torch.allclose(torch.tensor(theirs), ours.flatten(), 1e-5, 1e-6))):
            raise Refused(
                f"{source} sees latents with {key} {theirs}, the codec of its data gives {ours.flatten().tolist()}; set its "
                "mean and std to those that the network was trained with"
            )


def adopt(params: dict, output: Path, here: str | None = None, say=print) -> dict:
    """The teacher of a section with `source` or `file`: fetched, converted, or taken over if it is one of ours.

    params: source or file, perhaps sha256, and codec and labels of its data. here: where the file of `source` lies, if
    it need not be fetched. Returns the description. Raises Problem; then nothing is written.
    """
    codec, wanted, licence = params["codec"], params.get("sha256"), None
    if params.get("source"):
        row = fetching.source(params["source"])
        licence, wanted = row["licence"], wanted or row["sha256"] or None
        path = Path(here) if here else fetching.fetch(params["source"], say=say)
    else:
        path = Path(params["file"])
    if path.is_dir() or path.suffix != ".safetensors":
        if codec != PIXELS and (path.is_dir() or is_state(path) or not latents.has(codec)):
            raise Problem(
                f"{path} sees pixels on [-1, 1], its data has codec {codec}; set that to mean: 0.5, std: 0.25"
            )
        if path.is_dir():
            _agree(path, 0, params["labels"])
            return convert_folder(path, output, wanted)
        if is_state(path):
            return convert_state(path, output, wanted, licence, params["labels"])
        return convert(path, output, wanted, licence, params["labels"], codec)
    _, about = train.load(path)  # a teacher, or the sentence that says why not
    digest = _digest(path, wanted)
    if about["codec"] != codec:
        raise Problem(f"{path} was trained with codec {about['codec']}, its data has {codec}; make them equal")
    _agree(path, about["label_dim"], params["labels"])
    about |= {"source": about.get("source") or {"name": path.name, "sha256": digest}}
    save_tensors(output, load_tensors(path)[0], about)
    return about
