# SPDX-License-Identifier: Apache-2.0
"""What is added to a base loss, one file each. The contract stands in eldistill.contract."""
