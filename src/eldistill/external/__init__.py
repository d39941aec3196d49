# SPDX-License-Identifier: Apache-2.0
"""Files from outside the project: how they are fetched and identified, and readers that execute nothing in them."""
