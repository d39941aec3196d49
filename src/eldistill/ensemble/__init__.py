# SPDX-License-Identifier: Apache-2.0
"""Families of random embedding networks, one file each, and `seed`, which draws and calibrates an ensemble.

A family offers `Numbers`, `draw(numbers, shape, normal) -> {name: tensor}` and
`features(weights, images, numbers) -> [n, D]`. `normal(name, *shape)` gives standard normals from the member's
own seed; images are [n, c, h, w] with deviation near 1; every image is embedded by itself.
"""
