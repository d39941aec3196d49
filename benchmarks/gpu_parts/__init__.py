# SPDX-License-Identifier: Apache-2.0
"""The parts of benchmarks/gpu.py. A part is a module with `items(options)`, which lists its measurements in order."""
