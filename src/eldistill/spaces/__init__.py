# SPDX-License-Identifier: Apache-2.0
"""Pretrained feature spaces, one file each: RECIPE, NAMES (what params.yaml calls them), and `load(name, device)`,
which gives the function from uint8 images [n, c, h, w] to float32 features [n, D]. A new file needs no other edit."""
