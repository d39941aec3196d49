# SPDX-License-Identifier: Apache-2.0
"""Base losses, one file each. The contract stands in eldistill.contract; a file's name is the method's `file:`."""
