# SPDX-License-Identifier: Apache-2.0
"""`python -m gvr_topk`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
