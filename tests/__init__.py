# SPDX-License-Identifier: Apache-2.0
"""The tests. Folders below have the names of the packages of src/eldistill that they test."""
