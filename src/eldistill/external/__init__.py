# SPDX-License-Identifier: Apache-2.0
"""What comes from outside the project: files that are fetched, their identities, and readers that execute nothing in them."""
