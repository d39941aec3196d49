# SPDX-License-Identifier: Apache-2.0
"""Parts of losses that methods and supplements share."""
