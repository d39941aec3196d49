# SPDX-License-Identifier: Apache-2.0
"""Pretrained denoisers: trained by us (train)."""
