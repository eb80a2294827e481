# SPDX-License-Identifier: Apache-2.0
"""`python -m gvr_topk.bench`."""

from .cli import app

app(prog_name="python -m gvr_topk.bench")
