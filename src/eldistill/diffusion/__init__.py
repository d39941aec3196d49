# SPDX-License-Identifier: Apache-2.0
"""Noise: schedules, random numbers that belong to images, and augmentation with its labels."""
