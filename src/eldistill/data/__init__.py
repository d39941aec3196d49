# SPDX-License-Identifier: Apache-2.0
"""Images and their labels: the readers of files and archives, the packed data sets, and latents."""
