# SPDX-License-Identifier: Apache-2.0
"""Families of random embedding networks, one file each, and `seed`, which draws and calibrates an ensemble; `anchors`: what
EL against all real images needs.

A family has a frozen dataclass `Numbers`, a literal `RECIPE`, and these functions (the one in brackets is optional):

    draw(numbers, shape, normal) -> {name: tensor}                  random weights for images of shape (c, h, w)
    stages(weights, images, numbers) -> [tensor, …]                 outputs [n, …] of its stages
    [fit(weights, images, numbers) -> {name: tensor}]               weights that depend on the calibration images

normal(name, *size) gives standard normals from the seed of the member. Images are [n, c, h, w], divided by sigma_data, so that
their standard deviation is near 1. The features of an image do not depend on the other images, and have a gradient at it.

With a literal `RELATED = ("pixels",)` the file names the feature spaces of evaluations (files in spaces/) that have the same features as
its members, or a linear map of them. A run that is trained with such a member is not judged by these spaces alone: tables/across.py leaves
them out of its mean. Random networks without a `RELATED` are related to no feature space.

The last stage gives the features unless a member sets `features`. With a literal `TEACHER = True` in the file, `stages` gets the
frozen teacher as a fourth argument.
"""
