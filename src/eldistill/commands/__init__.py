# SPDX-License-Identifier: Apache-2.0
"""The commands beside the six steps. These modules read and report; no step needs them."""
