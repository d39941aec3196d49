# SPDX-License-Identifier: Apache-2.0
"""A run that starts from a generator with a second noise level, and the check of a start that has one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from eldistill import contract
from eldistill.distil import prepare
from eldistill.errors import Problem
from tests import conftest


def parts(method: str, **numbers) -> SimpleNamespace:
    module = contract.load_module("methods", method)
    made = module.Numbers(**numbers)
    return SimpleNamespace(network=conftest.teacher(), method=module, numbers=made, sigma_init=made.sigma_max)


def begun(**numbers) -> torch.nn.Module:
    """A generator of MeanFlow after some training."""
    net = prepare.make_networks(parts("mean_flow", **numbers), None, 0)["generator"]
    with torch.no_grad():
        net.network.interval.weight += 1.0
    return net


def test_mean_flow_continues_one_of_its_own():
    start = begun()
    made = prepare.make_networks(parts("mean_flow"), start, 0)["generator"]
    assert made.config == start.config and made is not start
    assert all(torch.equal(value, start.state_dict()[key]) for key, value in made.state_dict().items())


@pytest.mark.parametrize(
    ("method", "numbers", "found"),
    [("mean_flow", {"cosines": 8}, "one of 8"), ("consistency", {}, "none"), ("scm", {}, "none")],
)
def test_another_second_level_is_one_sentence(method, numbers, found):
    with pytest.raises(Problem) as error:
        prepare.make_networks(parts(method, **numbers), begun(), 0)
    assert f"a second noise level of 16 cosines, and that of this method {found};" in str(error.value)


def test_the_start_of_mean_flow_is_checked():
    """A second level that has no effect yet is no reason to leave the check out; one that has an effect is."""
    made = parts("mean_flow")
    nets = prepare.make_networks(made, None, 0)
    asked: list[int] = []

    class Reals:
        def __len__(self) -> int:
            return 4

        def labels(self, index: torch.Tensor) -> None:
            asked.append(len(index))

    def check(generate) -> None:
        method = SimpleNamespace(generate=generate, sampler=made.method.sampler)
        job = SimpleNamespace(nets=nets, seed=0, device="cpu", reals=Reals(), shape=(1, 8, 8), method=method,
                              numbers=made.numbers, training=SimpleNamespace(n_images=64))  # fmt: skip
        prepare.check_start(job, made.network)

    check(made.method.generate)
    assert asked == [4]
    with pytest.raises(Problem, match="does not start at the teacher's denoised image"):
        check(lambda *given: 2 * made.method.generate(*given))
    with torch.no_grad():
        nets["generator"].network.interval.weight += 1.0
    check(lambda *given: 2 * made.method.generate(*given))
    assert asked == [4, 4]
