# SPDX-License-Identifier: Apache-2.0
"""Feature spaces, one file each, found by listing this folder: a new file needs no other edit.

A file has RECIPE or COVERED_BY, NAMES (what params.yaml calls its spaces) and

    load_space(name, device) -> function from uint8 images [n, c, h, w] to float32 features [n, D]

or load_space(name, device, path) where path is the file of a network that this project trains. Of a classifier it returns a
ClassifierSpace (eldistill.evaluate.features), which gives class probabilities too. DOWNLOADS: rows of data/sources.csv that it
reads. All of these are literals, which the planner reads without importing the file.
"""
