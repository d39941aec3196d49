# SPDX-License-Identifier: Apache-2.0
"""Evaluation of generators: features of images, metrics of features, and the judges, which are classifiers trained for it."""
