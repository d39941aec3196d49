# SPDX-License-Identifier: Apache-2.0
"""Measuring generators: features, the metrics on them, and the judges (classifiers that are trained for evaluation)."""
