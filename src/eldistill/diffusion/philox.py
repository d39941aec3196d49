# SPDX-License-Identifier: Apache-2.0
"""Philox 4x64-10 (Salmon et al. 2011) on int64 tensors, equal to NumPy's to the bit, computed on the device.

Drawing on the CPU and copying to a GPU would take longer than a training step. torch has neither unsigned 64-bit
products nor their high halves, so both are composed of 32-bit halves; a mask after each right shift makes the shift
logical.
"""

from __future__ import annotations

import torch

from eldistill.diffusion import compiled

COVERED_BY = "noise"
LOW = 0xFFFFFFFF
FACTORS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # added to the two words of the key after each round
ROUNDS, WORDS = 10, 8  # rounds, and 32-bit words of a block (four of 64 bits)


def bits(key: int, first: int, count: int, each: int, device) -> torch.Tensor:
    """Words of 32 bits as int64 [count, each] on the device; row i belongs to image first + i.

    key: 128 bits, the low word first. Block b of image i has the counter i * blocks + b + 1, as numpy counts; counters
    are below 2^63, which no run reaches.
    """
    blocks = max(1, -(-each // WORDS))
    counter = torch.arange(first * blocks + 1, (first + count) * blocks + 1, dtype=torch.int64, device=device)
    # Passed as tensors, because compiled code would be specialised for the numbers of each key.
    left, right = (torch.full((), signed(word), dtype=torch.int64, device=device) for word in words_of(key))
    if counter.device.type in compiled.DEVICES:
        found = KERNEL(counter, left, right, otherwise=lambda: halves(counter, left, right))
    else:
        found = halves(counter, left, right)
    return found.reshape(count, blocks * WORDS)[:, : max(each, 1)]


def words_of(key: int) -> tuple[int, int]:
    """The two words of a key of 128 bits, the low one first."""
    return key & (2**64 - 1), key >> 64


def halves(counter: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The blocks of counters as 32-bit words, int64 [counters, 8]. left, right: the two words of the key, int64."""
    words = torch.stack(block(counter, left, right), dim=1)  # [counters, 4]
    return torch.stack((words & LOW, words >> 32 & LOW), dim=2).reshape(len(counter), WORDS)


def block(counter: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The four 64-bit words of the block of each counter, as int64 with the same bits.

    counter: int64, not negative; the other three words of the Philox counter are 0.

    left, right: the low and the high word of the key, int64 scalars with its bits.
    """
    a, b, c, d = counter, torch.zeros_like(counter), torch.zeros_like(counter), torch.zeros_like(counter)
    for _ in range(ROUNDS):
        high_a, low_a = product(a, FACTORS[0])
        high_c, low_c = product(c, FACTORS[1])
        a, b, c, d = high_c ^ b ^ left, low_c, high_a ^ d ^ right, low_a
        left, right = left + signed(STEPS[0]), right + signed(STEPS[1])  # they overflow as unsigned words do
    return a, b, c, d


def product(x: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low half of the unsigned product of x, int64 of any shape by its bits, and a factor below 2^64."""
    x_high, x_low = x >> 32 & LOW, x & LOW
    f_high, f_low = factor >> 32, factor & LOW
    # Each partial product is below 2^64. As a signed number it may overflow, but its bits are right.
    low, one, other = x_low * f_low, x_low * f_high, x_high * f_low
    carry = (low >> 32 & LOW) + (one & LOW) + (other & LOW)
    high = x_high * f_high + (one >> 32 & LOW) + (other >> 32 & LOW) + (carry >> 32)
    return high, x * signed(factor)


def signed(word: int) -> int:
    """The number in -2^63 … 2^63 - 1 with the bits of a 64-bit word."""
    return word - 2**64 if word >= 2**63 else word


KERNEL = compiled.Kernel(halves, "random numbers are computed")
