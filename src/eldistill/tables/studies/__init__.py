# SPDX-License-Identifier: Apache-2.0
"""The studies of a suite: one question and one table each."""
