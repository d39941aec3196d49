# SPDX-License-Identifier: Apache-2.0
"""Images from teachers and from finished generators."""
