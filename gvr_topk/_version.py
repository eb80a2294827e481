# SPDX-License-Identifier: Apache-2.0
"""The version of the package, and nothing else: setup.py and pyproject.toml read it from here."""

__version__ = "0.1.0"
