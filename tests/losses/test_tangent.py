# SPDX-License-Identifier: Apache-2.0
"""Directional derivatives of denoisers: against finite differences in float64, for every network and every way to run one."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eldistill import networks
from eldistill.diffusion import draws, dropout
from eldistill.losses import tangent
from eldistill.training import compute
from tests import conftest

NETWORKS = [name for name in networks.available() if name != "classifier"]


def inputs(dtype=torch.float64) -> tuple:
    """(x, sigma), and a direction for both."""
    draw = draws.Draw(0, "tangent", 0, 3, dtype=dtype)
    x, v = draw.normal("x", 1, 8, 8), draw.normal("v", 1, 8, 8)
    return (x, torch.tensor([0.3, 1.1, 4.0], dtype=dtype)), (v, torch.tensor([1.0, -0.5, 0.7], dtype=dtype))


def difference(function, at, along, step: float = 1e-6) -> torch.Tensor:
    """The central difference of the function in this direction."""
    ahead, behind = (
        function(*(a + sign * step * v for a, v in zip(at, along, strict=True))).detach() for sign in (1, -1)
    )
    return (ahead - behind) / (2 * step)


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    """Whether the norm of the difference is below this share of the norm, for each image."""
    return bool(((found - wanted).flatten(1).norm(dim=1) < tolerance * wanted.flatten(1).norm(dim=1)).all())


@pytest.mark.parametrize("network", NETWORKS)
def test_derivative_is_that_of_finite_differences(network):
    """In a direction of image and noise level at once, for each network, with the value of a plain pass.

    The noise level of ddpm passes through float32, where a smaller step would measure rounding.
    """
    net = conftest.teacher(dtype=torch.float64, network=network)
    at, along = inputs()
    value, change = tangent.jvp([net], net, at, along)
    torch.testing.assert_close(value, net(*at), rtol=1e-12, atol=1e-12)
    step, tolerance = (1e-4, 5e-3) if network == "ddpm" else (1e-6, 1e-6)
    assert close(difference(net, at, along, step), change, tolerance)
    assert change.any() and not value.requires_grad and not change.requires_grad


ATTENDING = {
    "network": "song", "img_resolution": 8, "img_channels": 1, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1,
    "attn_resolutions": [8, 4], "encoder_type": "residual", "embedding_type": "fourier", "resample_filter": [1, 3, 3, 1],
    "dropout": 0.3,
}  # fmt: skip


def attending() -> torch.nn.Module:
    """A network in training mode with attention, group norms, both kinds of resampling and dropout, in float64."""
    return conftest.perturb(networks.build(ATTENDING, 0)).double()


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_attention_and_resampling(recompute):
    """Masks are those of the pass with the graph, which stays usable, also with blocks that compute again."""
    net, draw = attending().train(), draws.Draw(0, "generator", 0, 3)
    if recompute:
        compute.recompute_blocks([net])

    def run(x, sigma):
        with dropout.masks(draw, "terms"):
            return net(x, sigma)

    at, along = inputs()
    ours = run(*at)
    value, change = tangent.jvp([net], run, at, along)
    torch.testing.assert_close(value, ours.detach(), rtol=1e-12, atol=1e-12)
    assert close(difference(run, at, along), change, 1e-5)
    ours.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert not torch.allclose(value, net.eval()(*at))


def test_derivative_is_linear_in_the_direction():
    """Twice the direction, twice the derivative; the sum of two directions, the sum."""
    net = conftest.teacher(dtype=torch.float64)
    at, (v, w) = inputs()
    of = lambda *along: tangent.jvp([net], net, at, along)[1]  # noqa: E731
    torch.testing.assert_close(of(2 * v, 2 * w), 2 * of(v, w), rtol=1e-10, atol=1e-12)
    zero = (torch.zeros_like(v), torch.zeros_like(w))
    torch.testing.assert_close(of(v, zero[1]) + of(zero[0], w), of(v, w), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("network", ["song", "edm2"])
def test_half_precision_rounds_only(network):
    """In bfloat16 the derivative is near that of float32, and passes with a graph work afterwards."""
    net = conftest.teacher(network=network)
    at, along = inputs(torch.float32)
    _, wanted = tangent.jvp([net], net, at, along)
    net.precision = torch.bfloat16
    _, found = tangent.jvp([net], net, at, along)
    assert found.dtype == torch.float32
    assert float((found - wanted).norm() / wanted.norm()) < 0.1
    net.requires_grad_(True)
    net(*at).sum().backward()
    weights = dict(net.named_parameters())
    assert all(p.grad is not None for key, p in weights.items() if p.ndim and "logvar" not in key)


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_stays(place):
    """Of the point or of the direction: the image's derivative is NaN, the others' is not."""
    net = conftest.teacher(dtype=torch.float64)
    given = [[each.clone() for each in part] for part in inputs()]
    given[place][0][1, 0, 2, 3] = torch.nan
    _, change = tangent.jvp([net], net, *given)
    assert change.isnan().flatten(1).any(dim=1).tolist() == [False, True, False]


def test_a_derivative_takes_the_operations_of_three_passes():
    """As `eldistill cost` bills it."""
    net, (at, along) = conftest.teacher(), inputs(torch.float32)

    def count(run) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    with torch.no_grad():
        once = count(lambda: net(*at))
    assert count(lambda: tangent.jvp([net], net, at, along)) == pytest.approx(tangent.PASSES * once, rel=1e-3)
