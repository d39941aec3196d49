# SPDX-License-Identifier: Apache-2.0
"""Random numbers computed in tensors: numpy's bits, and normals within a unit in the last place."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eldistill.diffusion import compiled, draws, dropout, philox

MASK = 2**64 - 1


def unsigned(x: torch.Tensor) -> list[int]:
    return [value & MASK for value in x.tolist()]


@pytest.mark.parametrize("seed", range(5))
def test_products_are_those_of_whole_numbers(seed):
    draw = random.Random(seed)
    edges = [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, MASK]
    numbers = edges + [draw.getrandbits(draw.randint(1, 64)) for _ in range(200)]
    x = torch.tensor([philox.signed(each) for each in numbers])
    for factor in (*edges, *philox.FACTORS, draw.getrandbits(64)):
        high, low = philox.product(x, factor)
        assert unsigned(high) == [each * factor >> 64 for each in numbers]
        assert unsigned(low) == [each * factor & MASK for each in numbers]


@pytest.mark.parametrize("first", [0, 1, 10**7, 2**40])
@pytest.mark.parametrize("each", [1, 2, 7, 8, 9, 35, 3072])
def test_bits_are_numpys(first, each):
    for seed in (0, 11):
        wanted = draws._bits(seed, "generator/z", first, 3, each)
        found = philox.bits(draws.stream_key(seed, "generator/z"), first, 3, each, "cpu")
        assert found.dtype == torch.int64 and np.array_equal(found.numpy(), wanted)


def block(counter: torch.Tensor, key: int) -> tuple[torch.Tensor, ...]:
    return philox.block(counter, *(torch.tensor(philox.signed(word)) for word in philox.words_of(key)))


def test_known_answers():
    """The published vector of the zero counter and key (Random123), and one with all bits of the key set by numpy."""
    zeros = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert [unsigned(word)[0] for word in block(torch.zeros(1, dtype=torch.int64), 0)] == zeros
    generator = np.random.Philox(key=2**128 - 1)
    found = block(torch.arange(1, 4), 2**128 - 1)
    assert [unsigned(word)[i] for i in range(3) for word in found] == generator.random_raw(12).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("few", [0, 2**14])
def test_a_device_draws_what_the_cpu_draws(monkeypatch, dtype, few):
    """Through the tensor path on the CPU, and with few numbers drawn on the CPU and sent.

    Whole numbers and uniforms to the bit, normals within a unit in the last place of
    float32, the keys of dropout too; a slice has the numbers of the whole."""

    def drawn() -> dict[str, torch.Tensor]:
        draw = draws.Draw(5, "generator", 1000, 6, dtype=dtype)
        with dropout.masks(draw, "images"):
            masks = dropout.dropout(torch.ones(6, 40, dtype=torch.float64), 0.3)
        return {"u": draw.uniform("u", 3, 5), "i": draw.integers("i", 1_281_167, 4), "z": draw.normal("z", 3, 7, 7),
                "part": draw[2:4].normal("z", 3, 7, 7), "masks": masks}  # fmt: skip

    wanted = drawn()
    monkeypatch.setattr(draws, "computed_on", lambda device: True)
    monkeypatch.setattr(draws, "FEW", few)
    found = drawn()
    for name in ("u", "i", "masks"):
        assert torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype
    for name in ("z", "part"):
        error = (found[name].double() - wanted[name].double()).abs()
        last = torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps
        assert found[name].dtype == dtype and bool((error <= last * wanted[name].double().abs()).all())
    assert torch.equal(found["part"], found["z"][2:4])


def test_only_the_cpu_has_numpys():
    assert not draws.computed_on("cpu") and draws.computed_on("cuda") and draws.computed_on("cuda:1")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler to compile with")
def test_compiled_numbers_are_the_plain_ones():
    """Machine code by torch's compiler, for this CPU: the same bits for other counters, keys and sizes, from one code."""
    torch._dynamo.reset()
    kernel = compiled.Kernel(philox.halves, "random numbers are computed")
    for first, count, key in ((1, 40, 2**128 - 1), (2**40, 9, 5), (7, 1000, 2**64 + 2**63)):
        arguments = (
            torch.arange(first, first + count),
            *(torch.tensor(philox.signed(word)) for word in philox.words_of(key)),
        )
        found = kernel(*arguments, otherwise=lambda: pytest.fail(str(kernel.failed)))
        assert torch.equal(found, philox.halves(*arguments))


def test_what_is_counted_is_not_compiled():
    """A count of operations goes through the plain form, and is no reason to give the compiled one up."""
    kernel = compiled.Kernel(torch.sin, "a sine is computed")
    kernel._compiled = lambda x: pytest.fail("compiled")
    with FlopCounterMode(display=False):
        assert kernel(torch.ones(2), otherwise=lambda: "plain") == "plain"
    assert kernel.failed is None
