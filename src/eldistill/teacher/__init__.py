# SPDX-License-Identifier: Apache-2.0
"""Teachers, the denoisers that are distilled: trained here, or read from files of others, and checked before they are used."""
