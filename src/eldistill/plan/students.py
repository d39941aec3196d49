# SPDX-License-Identifier: Apache-2.0
"""Checks of a method whose generator has a network of another size than the teacher's (distil/student.py)."""

from __future__ import annotations

from typing import Any

from eldistill.errors import expected_among, quoted
from eldistill.plan import guidance, sizes, unets
from eldistill.plan.schema import Wrong
from eldistill.registry import available, literal, settings

Section = dict[str, Any]
# Keyword arguments of networks that are sizes; all others are the teacher's.
SIZES = ("model_channels", "channel_mult", "channel_mult_emb", "channel_mult_noise", "num_blocks", "attn_resolutions",
         "channels_per_head", "num_head_channels", "num_heads", "block_out_channels", "layers_per_block",
         "attention_head_dim", "norm_num_groups")  # fmt: skip


def check_student(params: guidance.Resolved, where: str, base: Section, setting: Section) -> None:
    """Raise Wrong if the sizes of a generator do not fit its method or the teacher's network.

    where: the method in messages. base, setting: the resolved method and data setting of a run.
    """
    changes = base["generator_network"]
    if not changes:
        return
    where = f"{where}: generator_network"
    if not literal(f"methods/{base['file']}", "OTHER_SIZE", False):
        able = [file for file in available("methods") if literal(f"methods/{file}", "OTHER_SIZE", False)]
        raise Wrong(
            where,
            f"is {changes}, but the method {base['file']} needs a generator of the teacher's size; set it to null, or choose one of "
            f"the files {', '.join(able)}",
        )
    teacher = params.peek("teacher", guidance.main_name(params, setting["teacher"]))
    file = _network(teacher)
    known = [key for key in SIZES if file is None or key in settings(file)]
    for key in changes:
        if key not in known:
            raise Wrong(
                where,
                f"has {key}: {quoted(changes[key])}, which is no size of the teacher's network{expected_among(known, key)}",
            )
    if "network" in teacher:
        unets.check_network(where, teacher["network"] | changes, sizes.side_of(setting))


def _network(teacher: Section) -> str | None:
    # The file of networks/ that a teacher has; None if only its own file says it.
    if "network" in teacher:
        file: str = teacher["network"]["network"]
        return file
    return "edm2" if (teacher["source"] or "").startswith("edm2-") else None
