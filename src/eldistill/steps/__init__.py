# SPDX-License-Identifier: Apache-2.0
"""The six steps of the workflow as the command line runs them."""
