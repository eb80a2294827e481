# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/integration.md run, and its patches name what there is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "integration.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if "from_pretrained" not in e])
def test_examples_run(example: str) -> None:
    exec(compile(example, "docs/integration.md", "exec"), {"__name__": "example"})


def test_patches_import_what_exists() -> None:
    lines = "\n".join(line[1:] for line in TEXT.splitlines() if line[:1] in "+ ")
    imports = re.findall(r"from (gvr_topk[\w.]+) import (\([^)]*\)|[^\n]*)", lines)
    assert {module.rpartition(".")[2] for module, _ in imports} == {"vllm", "sglang", "flashinfer"}
    for module, names in imports:
        for name in re.findall(r"\w+", re.sub(r"\bas \w+", "", names)):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"
