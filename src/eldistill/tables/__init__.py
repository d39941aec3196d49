# SPDX-License-Identifier: Apache-2.0
"""Tables, plots and pages, made from the results of a suite."""
