# SPDX-License-Identifier: Apache-2.0
"""Tables, plots and pages of a suite, made from the evaluations of its runs."""
