# SPDX-License-Identifier: Apache-2.0
"""Metrics that an evaluation has only if `evaluate.extra_metrics` asks for them, one file each. They are found by listing this folder.

A file has a frozen dataclass `Numbers`, a literal `RECIPE` whose name is metrics/file, and

    measure(fake, real, numbers) -> float, {name: float} or None

fake, real: features [n, D] and [m, D] of generated and of real images, float64. It is called for each feature space and for each part
of the real images, and its value is written under the file's name, which has only small letters: `sw5k_pixels_heldout`. None means
that the metric does not apply, and is omitted. Only recipes of evaluations that ask for a file contain its version and its numbers.
"""
