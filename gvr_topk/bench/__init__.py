# SPDX-License-Identifier: Apache-2.0
"""The benchmark: `python -m gvr_topk.bench --help`."""
