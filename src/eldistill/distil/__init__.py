# SPDX-License-Identifier: Apache-2.0
"""Distillation of a teacher into a one-step generator."""
