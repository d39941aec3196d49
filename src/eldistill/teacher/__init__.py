# SPDX-License-Identifier: Apache-2.0
"""Teachers, the denoisers that are distilled: training, conversion of published ones, checks of their samples, and pairs."""
