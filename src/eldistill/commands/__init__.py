# SPDX-License-Identifier: Apache-2.0
"""The commands that are not steps of the workflow. No step imports these modules."""
