# SPDX-License-Identifier: Apache-2.0
"""Reads a folder of diffusers with a DDPM: its UNet2DModel, and the scheduler beside it, which says what the network sees.

The class of the scheduler decides. Those of SCHEDULERS all have x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) n; flow matching,
EDM's and score SDE's schedulers and those of consistency models have another x_t or another meaning of the output, and are
refused by name. So is every key that is not known here, for it could change either. Nothing but JSON and safetensors is read.
"""

from __future__ import annotations

import json
from pathlib import Path

from eldistill import networks
from eldistill.data import latents
from eldistill.external import listing, weights
from eldistill.external.opcodes import Refused
from eldistill.teacher import agree
from eldistill.teacher.agree import among, every, or_none, real, whole
from eldistill.tensors import load_tensors, save_tensors

RECIPE = ("teacher/folders", 1)
CONFIG_BYTES = 4 * 2**20  # of a JSON file, far above what even 100,000 betas need


def _any(value) -> bool:
    # For keys that concern only how samples are drawn.
    return True


NONE = among(None)
OFF = or_none(among(False))

UNET = {
    "sample_size": whole(4, 1024), "in_channels": whole(1, 16), "out_channels": whole(1, 16),
    "block_out_channels": every(whole(1, 4096)), "down_block_types": every(among("DownBlock2D", "AttnDownBlock2D")),
    "up_block_types": every(among("UpBlock2D", "AttnUpBlock2D")), "layers_per_block": whole(1, 16),
    "mid_block_scale_factor": real(1e-3, 1e3), "downsample_padding": whole(0, 1), "downsample_type": among("conv", "resnet"),
    "upsample_type": among("conv", "resnet"), "attention_head_dim": or_none(whole(1, 4096)), "norm_num_groups": whole(1, 1024),
    "attn_norm_num_groups": or_none(whole(1, 1024)), "norm_eps": real(0, 1), "freq_shift": whole(0, 1),
    "resnet_time_scale_shift": among("default", "scale_shift"), "add_attention": among(True, False),
    "flip_sin_to_cos": among(True, False), "time_embedding_dim": or_none(whole(1, 65536)),
}  # fmt: skip
# Keys of which one value is understood, and those that say nothing of a finished network: how it was trained, and what the
# running average of diffusers' training script notes beside its weights.
UNET_FIXED = {
    "center_input_sample": among(False), "time_embedding_type": among("positional"), "act_fn": among("silu", "swish"),
    "mid_block_type": among("UNetMidBlock2D"), "class_embed_type": NONE, "num_class_embeds": NONE,
    "num_train_timesteps": or_none(whole(1, 100_000)), "dropout": real(0, 1),
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
    "num_train_timesteps": whole(2, 100_000), "beta_start": real(0, 1), "beta_end": real(0, 1),
    "beta_schedule": among("linear", "scaled_linear", "squaredcos_cap_v2"), "prediction_type": among("epsilon", "v_prediction"),
    "trained_betas": or_none(every(real(0, 1), 100_000)),
}  # fmt: skip
NEEDED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")  # their defaults differ from class to class
# Keys that would change x_t, the label of a step or the meaning of the output: one value of each is understood.
SCHEDULE_FIXED = {
    "rescale_betas_zero_snr": OFF, "use_flow_sigmas": OFF, "use_dynamic_shifting": OFF, "timestep_type": among("discrete"),
    "predict_epsilon": among(True), "sigma_min": NONE, "sigma_max": NONE, "timestep_values": NONE, "shift_terminal": NONE,
    "variance_type": or_none(among("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")),
}  # fmt: skip
# Keys that concern how samples are drawn: the steps that are taken, the solver, what it clips. A teacher is sampled here.
SAMPLING = (
    "algorithm_type", "clip_sample", "clip_sample_range", "corrector_order", "disable_corrector", "dynamic_thresholding_ratio",
    "eta", "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type", "lambda_min_clipped", "lower_order_final",
    "noise_sampler_seed", "predict_x0", "predictor_order", "sample_max_value", "set_alpha_to_one", "skip_prk_steps",
    "solver_order", "solver_p", "solver_type", "steps_offset", "tau_func", "tensor_format", "thresholding", "time_shift_type",
    "timestep_spacing", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas",
)  # fmt: skip
NOTES = ("_class_name", "_diffusers_version", "_name_or_path", "_use_default_values")  # of every file of diffusers
AUTOENCODERS = ("vae", "vqvae", "movq")  # folders of a pipeline whose network sees latents
RENAMED = {"sample_size": "img_resolution", "in_channels": "img_channels"}


def _json(path: Path) -> dict:
    try:
        if path.stat().st_size > CONFIG_BYTES:
            raise ValueError(f"it has more than {CONFIG_BYTES >> 20} MiB")
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


def _understood(path: Path, values: dict, known: dict, what: str) -> None:
    """Raise Refused for the first key that is not known, or whose value is not."""
    for key, value in values.items():
        if key not in known and key not in NOTES:
            raise Refused(f"{path} has {ascii(key)[:60]}, which no {what} that is understood has")
        if key in known and not known[key](value):
            raise Refused(f"{path} has {key} {repr(value)[:60]}; such networks are not understood")


def _unet(path: Path) -> dict:
    """The keywords of a UNet2DModel under our names. Raises Refused."""
    values = _json(path)
    if values.get("_class_name") != "UNet2DModel":
        raise Refused(f"{path} is of {ascii(values.get('_class_name'))[:60]}; expected UNet2DModel")
    if isinstance(side := values.get("sample_size"), list) and len(side) == 2 and side[0] == side[1]:
        values["sample_size"] = side[0]  # newer files may have height and width
    if values.get("sample_size") is None:
        raise Refused(f"{path} has no sample_size; put the pixels a side of its images there")
    _understood(path, values, UNET | UNET_FIXED, "UNet2DModel")
    if values.get("in_channels", 3) != values.get("out_channels", 3):
        raise Refused(f"{path} needs as many channels out as in")
    return {RENAMED.get(key, key): value for key, value in values.items() if key in UNET and key != "out_channels"}


def _schedule(path: Path) -> dict:
    """The keywords of a noise schedule that is understood. Raises Refused."""
    values = _json(path)
    if (name := values.get("_class_name")) not in SCHEDULERS:
        raise Refused(
            f"{path} is of {ascii(name)[:60]}, whose noise or whose network's output is not DDPM's; expected one of "
            f"{', '.join(each.removesuffix('Scheduler') for each in SCHEDULERS)} (each with Scheduler behind it)"
        )
    _understood(path, values, SCHEDULE | SCHEDULE_FIXED | dict.fromkeys(SAMPLING, _any), "scheduler")
    betas = values.get("trained_betas")
    if lacking := [key for key in NEEDED if key not in values and betas is None]:
        raise Refused(f"{path} has no {lacking[0]}; put the one there that the network was trained with")
    if betas is not None and values.get("num_train_timesteps", 1000) != len(betas):
        raise Refused(f"{path} has {len(betas)} trained_betas, its num_train_timesteps is "
                      f"{values.get('num_train_timesteps', 1000)}; expected one for each step")  # fmt: skip
    return {key: value for key, value in values.items() if key in SCHEDULE}


def folder(source: Path) -> tuple[dict, Path]:
    """The configuration and the weights of a DDPM folder of diffusers: a pipeline's, or that of its UNet2DModel with the
    scheduler's beside it. Raises Refused."""
    if (encoder := next((name for name in AUTOENCODERS if (source / name).is_dir()), None)) is not None:
        raise Refused(
            f"{source} has a {encoder} beside its unet, so that this sees latents; expected a network of pixels"
        )
    if not (source / "unet").is_dir() and (source / "unet_ema").is_dir():
        raise Refused(
            f"{source} has no unet but a unet_ema, the running average of a training; give {source / 'unet_ema'}"
        )
    described, schedule, path = listing.unet_files(source)
    config = {"network": "ddpm", "img_channels": 3, **_unet(described)}
    if schedule is None:
        raise Refused(
            f"{source} has no scheduler/scheduler_config.json, which says what noise a step has; put it there"
        )
    config |= _schedule(schedule)
    if not path.exists():
        there = f" (there are {', '.join(found)[:160]})" if (found := listing.weights_there(path.parent)) else ""
        raise Refused(
            f"{path} is missing{there}; other files of weights are not read: `save_pretrained(safe_serialization=True, "
            'max_shard_size="50GB")` writes it'
        )
    return config, path


def convert(source: Path, output: Path, sha256: str | None = None) -> dict:
    """Write the network of a DDPM folder of diffusers as a teacher; returns its description. Raises Refused; then nothing
    is written. sha256: of its file of weights."""
    config, path = folder(source)
    digest = agree.digest(path, sha256)
    try:
        outline = networks.outline(config)
    except ValueError as error:
        raise Refused(f"{source} describes no network that is understood: {error}") from None
    wanted = outline.state_dict()
    # Files of before 2023 have older names of attention's layers.
    tensors = {
        f"model.unet.{name}": each for name, each in latents.rename_tensors(load_tensors(path, foreign=True)[0]).items()
    }
    weights.check_weights(path, tensors, wanted)
    config = outline.config
    side = config["img_resolution"]
    about = {
        "config": config, "codec": agree.PIXELS, "shape": [config["img_channels"], side, side], "label_dim": 0,
        "source": {"name": source.name, "sha256": digest, "bytes": path.stat().st_size, "class": "UNet2DModel", "licence": None},
    }  # fmt: skip
    save_tensors(output, {name: tensors[name] for name in wanted}, about)
    return about
