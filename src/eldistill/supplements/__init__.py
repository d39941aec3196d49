# SPDX-License-Identifier: Apache-2.0
"""Additions to a base loss, one file each. eldistill.contract explains their functions."""
