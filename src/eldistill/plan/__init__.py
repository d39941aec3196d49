# SPDX-License-Identifier: Apache-2.0
"""Parameters and their schema, the steps and their recipes, and which of them are stale for the workflow."""
