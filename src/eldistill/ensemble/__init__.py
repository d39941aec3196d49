# SPDX-License-Identifier: Apache-2.0
"""Families of random embedding networks, one file each, and `seed`, which draws and calibrates an ensemble.

A family offers `Numbers`, `draw(numbers, shape, normal) -> {name: tensor}` and `stages(weights, images, numbers) ->
[tensor, …]`; eldistill.contract explains them. `normal(name, *shape)` returns standard normals from the seed of the
member. Images are [n, c, h, w] with a standard deviation near 1. The features of an image do not depend on the other
images.
"""
