# SPDX-License-Identifier: Apache-2.0
"""Where the gradients of a base loss and of a supplement are compared, if the base loss has none at the images."""

from __future__ import annotations

import pytest
import torch

from eldistill.networks import interval
from eldistill.training import meeting
from tests.networks.test_half import SMALL, denoise, inputs, lively


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("name", SMALL)
def test_it_is_the_layer_that_runs_last(name, levels):
    """In every network, with one and with two noise levels, wherever the layer of the second level is registered."""
    if SMALL[name]["network"] == "ddpm":
        pytest.importorskip("diffusers")
    net = lively(name)
    if levels == 2:
        interval.attach(net, 4)
    ran = []
    for layer in net.modules():
        if isinstance(getattr(layer, "weight", None), torch.nn.Parameter) and layer.weight.ndim > 1:
            layer.register_forward_hook(lambda layer, *_: ran.append(layer.weight))
    denoise(net, *inputs(net)).square().mean().backward()
    weights = list(net.parameters())
    assert weights[meeting.output_layer(weights)] is ran[-1] and ran[-1].ndim == 4
