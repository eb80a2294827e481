# SPDX-License-Identifier: Apache-2.0
"""`python -m gvr_topk.fuzz`."""

import sys

from gvr_topk.cli import main

if __name__ == "__main__":
    sys.exit(main(["fuzz", *sys.argv[1:]]))
