# SPDX-License-Identifier: Apache-2.0
"""The fuzzer's rows and hints under the name by which tests import them."""

from gvr_topk.fuzz.hints import HINTS, INT32_MAX, cross_hints, make_hint
from gvr_topk.fuzz.rows import ROWS, make_rows, row_names

__all__ = ["HINTS", "INT32_MAX", "ROWS", "cross_hints", "make_hint", "make_rows", "row_names"]
