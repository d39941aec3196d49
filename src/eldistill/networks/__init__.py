# SPDX-License-Identifier: Apache-2.0
"""Builds networks by name, which is the name of a module in this folder.

A network file offers a dataclass `Settings` with the keywords, their defaults and checks, and a function
`network(**settings)`, which builds the module without drawing its weights.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import pkgutil
from types import ModuleType

import torch
from torch import nn

from eldistill.networks import interval, layers

COVERED_BY = "networks/layers"


def build(config: dict, seed: int | None = None) -> nn.Module:
    """Build the network that `config` describes, in training mode, with weights drawn from `seed` (None: 0).

    config: JSON-able; key `network` names the file, the others are the fields of its `Settings`. `interval`, if it is there,
    is the number of cosines of a second noise level (networks/interval.py).
    The result carries `.config`, the same with every default filled in: `build(result.config)` rebuilds it.
    The same seed gives the same weights; torch's global generator is neither read nor changed.
    Raises ValueError, one sentence, for an unknown network, an unknown or missing keyword, or a wrong value.
    """
    network = _make(config)
    layers.initialise(network, torch.Generator(device="cpu").manual_seed(0 if seed is None else seed))
    return network


def outline(config: dict) -> nn.Module:
    """Build the network without weights on the meta device, which needs no memory: names, shapes and `.config`.

    Raises ValueError as `build` does.
    """
    with torch.device("meta"):
        return _make(config)


def _make(config: dict) -> nn.Module:
    settings = dict(config)
    name = settings.pop("network", None)
    cosines = settings.pop("interval", None)
    module = _module(name)
    full = _complete(name, module.Settings, settings)
    network = module.network(**full)
    network.config = {"network": name, **full}
    return network if cosines is None else interval.attach(network, cosines)


def available() -> list[str]:
    """Names of the network files in this folder, sorted."""
    return sorted(name for name in _files() if _network(name) is not None)


def _files() -> set[str]:
    return {entry.name for entry in pkgutil.iter_modules(__path__)}


def _network(name: str) -> ModuleType | None:
    # The module of a network; None for a file with parts of networks.
    module = importlib.import_module(f"{__name__}.{name}")
    return module if callable(getattr(module, "network", None)) else None


def _module(name: object) -> ModuleType:
    if name in _files() and (module := _network(str(name))) is not None:
        return module
    raise ValueError(f"There is no network {name!r}; known networks: {', '.join(available())}.")


def _complete(name: str, settings_class: type, settings: dict) -> dict:
    """The checked settings with all defaults, as plain JSON values."""
    fields = {field.name: field for field in dataclasses.fields(settings_class)}
    for key in settings:
        if key not in fields:
            nearest = difflib.get_close_matches(str(key), fields, n=1, cutoff=0)[0]
            raise ValueError(f"Network {name} has no setting {key!r}; the nearest one is {nearest!r}.")
    needed = [key for key, field in fields.items() if field.default is dataclasses.MISSING]
    missing = [key for key in needed if key not in settings]
    if missing:
        raise ValueError(f"Network {name} needs {', '.join(missing)}.")
    try:
        text = json.dumps(dataclasses.asdict(settings_class(**settings)), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The settings of network {name} are unusable: {error}") from error
    return json.loads(text)
