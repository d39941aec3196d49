# SPDX-License-Identifier: Apache-2.0
"""Reader of DDPMs in folders of diffusers: a UNet2DModel, and its scheduler, which defines the noise that the network expects.

All schedulers in SCHEDULERS have x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) n. The schedulers of flow matching, EDM, score SDEs and
consistency models have another x_t or another meaning of the network's output, and are refused by their class. Unknown keys are
refused too, because they could change either. Only JSON and safetensors files are read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from eldistill import networks
from eldistill.data import latents
from eldistill.external import listing, weights
from eldistill.external.opcodes import Refused
from eldistill.outside import check_file
from eldistill.teacher import agree
from eldistill.teacher import guided as states
from eldistill.teacher.agree import list_of, one_of, or_none, real_number, whole_number
from eldistill.tensors import load_tensors, save_tensors

RECIPE = ("teacher/folders", 1)
CONFIG_BYTES = 4 * 2**20  # limit for a JSON file; even 100,000 betas need much less


def _any(value) -> bool:
    # For keys that affect only sampling.
    return True


NONE = one_of(None)
OFF = or_none(one_of(False))

UNET = {
    "sample_size": whole_number(4, 1024), "in_channels": whole_number(1, 16), "out_channels": whole_number(1, 16),
    "block_out_channels": list_of(whole_number(1, 4096)), "down_block_types": list_of(one_of("DownBlock2D", "AttnDownBlock2D")),
    "up_block_types": list_of(one_of("UpBlock2D", "AttnUpBlock2D")), "layers_per_block": whole_number(1, 16),
    "mid_block_scale_factor": real_number(1e-3, 1e3), "downsample_padding": whole_number(0, 1), "downsample_type": one_of("conv", "resnet"),
    "upsample_type": one_of("conv", "resnet"), "attention_head_dim": or_none(whole_number(1, 4096)),
    "norm_num_groups": whole_number(1, 1024),
    "attn_norm_num_groups": or_none(whole_number(1, 1024)), "norm_eps": real_number(0, 1), "freq_shift": whole_number(0, 1),
    "resnet_time_scale_shift": one_of("default", "scale_shift"), "add_attention": one_of(True, False),
    "flip_sin_to_cos": one_of(True, False), "time_embedding_dim": or_none(whole_number(1, 65536)),
    "num_class_embeds": or_none(whole_number(1, 100_000)),
}  # fmt: skip
# Keys of which only one value is supported, and keys that do not affect a trained network: how it was trained, and what the running
# average of diffusers' training script stores with its weights.
UNET_FIXED = {
    "center_input_sample": one_of(False), "time_embedding_type": one_of("positional"), "act_fn": one_of("silu", "swish"),
    "mid_block_type": one_of("UNetMidBlock2D"), "class_embed_type": NONE,
    "num_train_timesteps": or_none(whole_number(1, 100_000)), "dropout": real_number(0, 1),
    **dict.fromkeys(("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"), _any),
}  # fmt: skip
# Schedulers of diffusers with the x_t above, whose networks predict epsilon or v of it.
SCHEDULERS = (
    "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "RePaintScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
SCHEDULE = {
    "num_train_timesteps": whole_number(2, 100_000), "beta_start": real_number(0, 1), "beta_end": real_number(0, 1),
    "beta_schedule": one_of("linear", "scaled_linear", "squaredcos_cap_v2"), "prediction_type": one_of("epsilon", "v_prediction"),
    "trained_betas": or_none(list_of(real_number(0, 1), 100_000)),
}  # fmt: skip
NEEDED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")  # their defaults differ from class to class
# Keys that would change x_t, the label of a step or the meaning of the output. Only these values are supported.
SCHEDULE_FIXED = {
    "rescale_betas_zero_snr": OFF, "use_flow_sigmas": OFF, "use_dynamic_shifting": OFF, "timestep_type": one_of("discrete"),
    "predict_epsilon": one_of(True), "sigma_min": NONE, "sigma_max": NONE, "timestep_values": NONE, "shift_terminal": NONE,
    "variance_type": or_none(one_of("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")),
}  # fmt: skip
# Keys that affect only sampling: the steps, the solver and its clipping. This project samples teachers by its own method.
SAMPLING = (
    "algorithm_type", "clip_sample", "clip_sample_range", "corrector_order", "disable_corrector", "dynamic_thresholding_ratio",
    "eta", "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type", "lambda_min_clipped", "lower_order_final",
    "noise_sampler_seed", "predict_x0", "predictor_order", "sample_max_value", "set_alpha_to_one", "skip_prk_steps",
    "solver_order", "solver_p", "solver_type", "steps_offset", "tau_func", "tensor_format", "thresholding", "time_shift_type",
    "timestep_spacing", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas",
)  # fmt: skip
NOTES = (
    "_class_name",
    "_diffusers_version",
    "_name_or_path",
    "_use_default_values",
)  # keys that every file of diffusers may have
AUTOENCODERS = ("vae", "vqvae", "movq")  # folders of a pipeline whose network uses latents
RENAMED = {"sample_size": "img_resolution", "in_channels": "img_channels", "num_class_embeds": "label_dim"}


def _json(path: Path) -> dict:
    try:
        if path.exists() and check_file(path, "a file of JSON", text=True).stat().st_size > CONFIG_BYTES:
            raise ValueError(f"it has more than {CONFIG_BYTES >> 20} MiB")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(
            f"{path} is missing; expected the folder of a DDPM of diffusers: `save_pretrained` writes it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{path} cannot be read ({error}); expected JSON as diffusers writes it") from None
    if not isinstance(found, dict):
        raise Refused(f"{path} is not a mapping; expected JSON as diffusers writes it")
    return found


def _understood(path: Path, values: dict, known: dict, what: str) -> None:
    """Raise Refused for the first key that is unknown or has a value that is not supported."""
    for key, value in values.items():
        if key not in known and key not in NOTES:
            raise Refused(f"{path} has the key {ascii(key)[:60]}, which no supported {what} has")
        if key in known and not known[key](value):
            raise Refused(f"{path} has {key} {repr(value)[:60]}, which is not supported; give another network")


def _unet(path: Path) -> dict:
    """The keywords of a UNet2DModel under the names of networks/ddpm.py. Raises Refused."""
    values = _json(path)
    if values.get("_class_name") != "UNet2DModel":
        raise Refused(f"{path} describes a {ascii(values.get('_class_name'))[:60]}; expected a UNet2DModel")
    if isinstance(side := values.get("sample_size"), list) and len(side) == 2 and side[0] == side[1]:
        values["sample_size"] = side[0]  # some versions store height and width
    if values.get("sample_size") is None:
        raise Refused(f"{path} has no sample_size; add it, with the side of the images in pixels")
    _understood(path, values, UNET | UNET_FIXED, "UNet2DModel")
    if values.get("in_channels", 3) != values.get("out_channels", 3):
        raise Refused(f"{path} has another number of out_channels than of in_channels; expected the same number")
    if values.get("num_class_embeds") is None:
        values.pop("num_class_embeds", None)
    return {RENAMED.get(key, key): value for key, value in values.items() if key in UNET and key != "out_channels"}


def _schedule(path: Path) -> dict:
    """The keywords of a supported noise schedule. Raises Refused."""
    values = _json(path)
    if (name := values.get("_class_name")) not in SCHEDULERS:
        raise Refused(
            f"{path} describes {ascii(name)[:60]}, whose noise or network output differs from DDPM's; expected one of "
            f"{', '.join(each.removesuffix('Scheduler') for each in SCHEDULERS)} (each with Scheduler behind it)"
        )
    _understood(path, values, SCHEDULE | SCHEDULE_FIXED | dict.fromkeys(SAMPLING, _any), "scheduler")
    betas = values.get("trained_betas")
    if lacking := [key for key in NEEDED if key not in values and betas is None]:
        raise Refused(f"{path} has no {lacking[0]}; add the value with which the network was trained")
    if betas is not None and values.get("num_train_timesteps", 1000) != len(betas):
        raise Refused(f"{path} has {len(betas)} trained_betas, but its num_train_timesteps is "
                      f"{values.get('num_train_timesteps', 1000)}; expected one for each step")  # fmt: skip
    return {key: value for key, value in values.items() if key in SCHEDULE}


def read_folder(source: Path) -> tuple[dict, list[Path]]:
    """The configuration of a DDPM in a folder of diffusers, and the paths of its weights (see `listing.choose_weights`).

    source: the folder of a pipeline, or that of its UNet2DModel with the folder of its scheduler next to it. Raises Refused."""
    if (encoder := next((name for name in AUTOENCODERS if (source / name).is_dir()), None)) is not None:
        raise Refused(
            f"{source} has a {encoder} next to its unet, so that the network uses latents; expected a network of pixels"
        )
    if not (source / "unet").is_dir() and (source / "unet_ema").is_dir():
        raise Refused(
            f"{source} has no unet, only a unet_ema, which is a running average from training; give {source / 'unet_ema'}"
        )
    described, schedule, paths = listing.unet_files(source)
    config = {"network": "ddpm", "img_channels": 3, **_unet(described)}
    if schedule is None:
        raise Refused(f"{source} has no scheduler/scheduler_config.json, which defines the noise of each step; add it")
    config |= _schedule(schedule)
    if not paths[0].exists():
        there = f" (there are {', '.join(found)[:160]})" if (found := listing.weights_there(paths[0].parent)) else ""
        raise Refused(f"{paths[0]} is missing{there}; `save_pretrained(safe_serialization=True)` writes it")
    return config, paths


def _weights(paths: list[Path]) -> dict[str, torch.Tensor]:
    """The tensors of one file, or of the parts that an index names. Raises Refused and Problem."""
    if paths[0].suffix == ".bin":
        try:
            return states.load_floats(paths[0])
        except Refused:
            raise
        except Exception as error:  # those of torch and zipfile for damaged files are not documented
            text = " ".join(str(error).split())[:300]
            raise Refused(f"{paths[0]} holds no plain state of a network ({text}); fetch it again") from None
    if paths[0].suffix == ".safetensors":
        return load_tensors(paths[0], foreign=True)[0]
    wanted, there = _json(paths[0]).get("weight_map"), {path.name: path for path in paths[1:]}
    if not isinstance(wanted, dict) or not wanted or not all(isinstance(each, str) for each in wanted.values()):
        raise Refused(f"{paths[0]} has no weight_map of names; expected an index as diffusers writes it")
    if lacking := sorted(set(wanted.values()) - there.keys()):
        raise Refused(
            f"{paths[0].parent / ascii(lacking[0])[1:-1][:80]} is missing, which {paths[0].name} names; fetch it too"
        )
    found: dict[str, torch.Tensor] = {}
    for name in sorted(set(wanted.values())):
        part = load_tensors(there[name], foreign=True)[0]
        if odd := sorted(key for key in part if wanted.get(key) != name):
            raise Refused(
                f"{there[name]} has {ascii(odd[0])[:80]}, which {paths[0].name} does not say of it; fetch both again"
            )
        found |= part
    return found


def _digest(paths: list[Path], wanted: str | None) -> str:
    """The digest of one file, or, as the identity of a folder has it, of the names and digests of several. Raises Refused."""
    if len(paths) == 1:
        return agree.check_digest(
            paths[0], wanted, text=paths[0].suffix == ".json"
        )  # an index, whose parts are missing
    lines = (f"{path.name}\0{agree.check_digest(path, None, text=True)}\n".encode() for path in sorted(paths))
    found = hashlib.sha256(b"".join(lines)).hexdigest()
    if wanted not in (None, found):
        raise Refused(
            f"{paths[0].parent} has weights with the digest {found[:16]}…; expected {wanted[:16]}…: fetch them again"
        )
    return found


def convert_folder(source: Path, output: Path, sha256: str | None = None, labels: bool | None = None) -> dict:
    """Write the network of a DDPM in a folder of diffusers as a teacher; returns its description.

    sha256: the digest that its weights must have. labels: whether the network must have classes; None accepts both. Raises Refused
    if it is not supported; nothing is written then."""
    config, paths = read_folder(source)
    agree.check_labels(source, config.get("label_dim", 0), labels)
    digest = _digest(paths, sha256)
    try:
        outline = networks.outline(config)
    except ValueError as error:
        raise Refused(f"{source} describes a network that is not supported: {error}") from None
    wanted = outline.state_dict()
    # Files from before 2023 have other names for the layers of attention.
    tensors = {f"model.unet.{name}": each for name, each in latents.rename_tensors(_weights(paths)).items()}
    weights.check_weights(paths[0], tensors, wanted)
    config = outline.config
    side = config["img_resolution"]
    about = {
        "config": config, "codec": agree.PIXELS, "shape": [config["img_channels"], side, side], "label_dim": config["label_dim"],
        "source": {
            "name": source.name, "sha256": digest, "bytes": sum(path.stat().st_size for path in paths), "class": "UNet2DModel",
            "licence": None,
        },
    }  # fmt: skip
    save_tensors(output, {name: tensors[name] for name in wanted}, about)
    return about
