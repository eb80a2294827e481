# SPDX-License-Identifier: Apache-2.0
"""`python -m gvr_topk`."""

import sys

try:
    from .cli import main
except ModuleNotFoundError as error:
    if (error.name or "").startswith("gvr_topk"):
        raise
    sys.exit(
        f"error: {sys.executable} has no module {error.name}: activate the environment that "
        "gvr_topk was built in (.venv, where make made one), or pip install --no-build-isolation ."
    )

if __name__ == "__main__":
    sys.exit(main())
