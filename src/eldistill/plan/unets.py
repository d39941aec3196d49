# SPDX-License-Identifier: Apache-2.0
"""Checks of the network of a teacher that is trained here, by arithmetic on its settings alone: nothing is built or imported.

The networks refuse the same settings when they are built, which is only after the images are packed; a test compares both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from eldistill.plan.schema import Wrong
from eldistill.registry import setting_fields

GROUPED = ("song", "adm")  # networks whose norms have min(32, channels // 4) groups
HEAD = 64  # channels of an attention head of adm
# Largest values, far above those of any published network: a plan builds the network, without weights, to count its work.
MOST = {
    "num_blocks": 64,
    "model_channels": 8192,
    "channel_mult_emb": 64,
    "channel_mult_noise": 64,
    "channels_per_head": 8192,
}
MOST_FACTOR = 256  # of channel_mult
Flow = Iterator[tuple[int, int, bool]]  # of each block: channels in, channels out, whether it has attention


def check_network(where: str, network: dict[str, Any], side: int | None) -> None:
    """Raise Wrong if this network cannot be built for images of `side` pixels; None stands for an unknown size.

    network: the section `network` of a teacher, with known keys. where: its place in messages. Networks of other files than
    song, adm and edm2 have the types of their settings checked."""
    file = network["network"]
    if file == "classifier":
        raise Wrong(
            f"{where}.network", "is 'classifier', which judges are made of; expected a denoiser: song, adm or edm2"
        )
    for key, value in network.items():
        if key != "network" and (wanted := _unlike(value, setting_fields(file)[key][0])):
            raise Wrong(f"{where}.{key}", f"is {value!r}; expected {wanted}")
    full = {key: default for key, (_, default) in setting_fields(file).items()} | network
    if file in (*GROUPED, "edm2"):
        _sizes(where, full)
        _places(where, network, full, side)
        _channels(where, full, side)


# --- types ----------------------------------------------------------------------------------------------


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (_whole, "a whole number"),
    "float": (_real, "a number"),
    "str": (lambda value: isinstance(value, str), "a text"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "Sequence[int]": (lambda value: isinstance(value, list) and all(map(_whole, value)), "a list of whole numbers"),
    "None": (lambda value: value is None, "null"),
}


def _unlike(value: Any, annotation: str) -> str | None:
    # What the annotation of a field expects instead of this value; None if it fits, or if the annotation is another.
    kinds = [KINDS.get(part) for part in annotation.split(" | ")]
    known = [kind for kind in kinds if kind]
    if len(known) < len(kinds) or any(fits(value) for fits, _ in known):
        return None
    return " or ".join(words for _, words in known)


# --- sizes ----------------------------------------------------------------------------------------------


def _sizes(where: str, full: dict[str, Any]) -> None:
    for key, most in MOST.items():
        if full.get(key) is not None and not 1 <= full[key] <= most:
            raise Wrong(
                f"{where}.{key}", f"is {full[key]}; expected {'1 or more' if full[key] < 1 else f'at most {most}'}"
            )
    taps = full.get("resample_filter") or (1, 1)
    if full.get("resample_filter") == [] or len(taps) % 2 or not sum(taps):
        raise Wrong(
            f"{where}.resample_filter",
            f"is {full['resample_filter']}; expected an even number of whole numbers whose sum is not 0, such as [1, 1] or [1, 3, 3, 1]",
        )
    if not full["channel_mult"] or not 1 <= min(full["channel_mult"]) <= max(full["channel_mult"]) <= MOST_FACTOR:
        raise Wrong(
            f"{where}.channel_mult",
            f"is {full['channel_mult']}; expected one whole number above 0 for each resolution, such as [1, 2]",
        )
    if not 0 <= full["dropout"] < 1:
        raise Wrong(f"{where}.dropout", f"is {full['dropout']}; expected a probability from 0 to below 1")
    for key, known in (("embedding_type", ("positional", "fourier")), ("encoder_type", ("standard", "residual"))):
        if key in full and full[key] not in known:
            raise Wrong(f"{where}.{key}", f"is {full[key]!r}; expected {' or '.join(known)}")
    width, least = full["model_channels"] * (full.get("channel_mult_noise") or 1), 2 if full["network"] == "adm" else 4
    if full["network"] in GROUPED and (width % 2 or width < least):
        raise Wrong(
            f"{where}.model_channels",
            f"is {full['model_channels']}, which makes the embedding of the noise level {width} wide; expected an even width "
            f"of at least {least}",
        )


def _places(where: str, network: dict[str, Any], full: dict[str, Any], side: int | None) -> None:
    # Whether the image can be halved as often as there are factors, and whether attention is asked for where no level is.
    levels = len(full["channel_mult"])
    if side is None:
        return
    if side % 2 ** (levels - 1):
        most = 1 + (side & -side).bit_length() - 1
        raise Wrong(
            f"{where}.channel_mult",
            f"has {levels} factors, which halve the image {levels - 1} times, but the images have {side} pixels a side; "
            f"give at most {most}, or the data setting a `resolution` that is a multiple of {2 ** (levels - 1)}",
        )
    there = [side >> level for level in range(levels)]
    if absent := [each for each in network.get("attn_resolutions", []) if each not in there]:
        raise Wrong(
            f"{where}.attn_resolutions",
            f"has {absent[0]}, but with {levels} factors in channel_mult images of {side} pixels are {', '.join(map(str, there))} "
            f"pixels wide in the network; remove {absent[0]}, or name one of these",
        )


# --- channels -------------------------------------------------------------------------------------------


def _channels(where: str, full: dict[str, Any], side: int | None) -> None:
    # Widths that the groups of a norm, or the heads of attention, do not divide.
    for inside, out, attends in _blocks(full, side):
        for channels in (inside, out) if full["network"] in GROUPED else ():
            groups = min(32, channels // 4)
            if not groups or channels % groups:
                raise Wrong(
                    f"{where}.model_channels",
                    f"is {full['model_channels']}, and with channel_mult {list(full['channel_mult'])} a layer has {channels} channels, "
                    "which cannot be split into min(32, channels // 4) equal groups; set model_channels to a multiple of 32",
                )
        head = {"adm": HEAD, "edm2": full.get("channels_per_head")}.get(full["network"])
        if attends and head and (heads := out // head) and out % heads:
            raise Wrong(
                f"{where}.model_channels",
                f"is {full['model_channels']}, and with channel_mult {list(full['channel_mult'])} attention has {out} channels, which "
                f"cannot be split into {heads} equal heads of at least {head}; set model_channels to a multiple of {head}",
            )


def _blocks(full: dict[str, Any], side: int | None) -> Flow:
    # The blocks of the encoder and of the decoder, in order. Without a size no level has attention but the innermost.
    song, blocks = full["network"] == "song", full["num_blocks"]
    levels = [
        (full["model_channels"] * factor, side is not None and (side >> level) in full["attn_resolutions"])
        for level, factor in enumerate(full["channel_mult"])
    ]
    current = full["model_channels"] if song else levels[0][0]
    waiting = [current]
    for level, (width, attends) in enumerate(levels):
        if level:
            yield current, current, False
            waiting.append(current)
        for _ in range(blocks):
            yield current, width, attends
            current = width
            waiting.append(current)
    yield current, current, True
    for width, attends in reversed(levels):
        yield current, current, False  # its second innermost block, or the one that doubles the image
        for index in range(blocks + 1):
            yield current + waiting.pop(), width, attends and (index == blocks or not song)
            current = width
