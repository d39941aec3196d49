# SPDX-License-Identifier: Apache-2.0
"""What is to be made: parameters and their schema, recipes, and the workflow's view of what is stale."""
