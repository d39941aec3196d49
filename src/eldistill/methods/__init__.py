# SPDX-License-Identifier: Apache-2.0
"""Base losses, one file each; the key `file` of a method in params.yaml names one.

eldistill.contract explains the functions that a file offers.
"""
