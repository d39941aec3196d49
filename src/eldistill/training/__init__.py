# SPDX-License-Identifier: Apache-2.0
"""The training loop, and what it needs of the machine: optimisers, checks, saved states, processes and precision."""
