# SPDX-License-Identifier: Apache-2.0
"""Studies of a suite. Each answers one question with one table."""
