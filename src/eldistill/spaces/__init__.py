# SPDX-License-Identifier: Apache-2.0
"""Feature spaces, one file each. They are found by listing this folder, so that a new file needs no other edit.

A file has RECIPE or COVERED_BY, NAMES (the names of its spaces in params.yaml) and

    load_space(name, device) -> function from uint8 images [n, c, h, w] to float32 features [n, D]

or load_space(name, device, path) if path is the file of a network that this project trains. For a classifier it returns
a ClassifierSpace (eldistill.evaluate.features), which also gives class probabilities. DOWNLOADS are the rows of data/sources.csv that
it reads. All of these constants are literals, which the planner reads without importing the file.
"""
