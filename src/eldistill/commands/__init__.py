# SPDX-License-Identifier: Apache-2.0
"""What the command line offers beside the six steps. These modules read and report; no step needs them."""
