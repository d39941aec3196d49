# SPDX-License-Identifier: Apache-2.0
"""Feature spaces, one file each, found by listing this folder: a new file needs no other edit.

A file has RECIPE or COVERED_BY, NAMES (what params.yaml calls its spaces) and

    load(name, device) -> function from uint8 images [n, c, h, w] to float32 features [n, D]

or load(name, device, path) where path is the file of a network that this project trains. The function may have `probabilities`,
from features [n, D] to those of a classifier's classes [n, classes], and `label_dim`, how many labels of the data set that
classifier has learned. DOWNLOADS: rows of data/sources.csv that it reads. All three tuples are literals, which the
planner reads without importing the file.
"""
