# SPDX-License-Identifier: Apache-2.0
"""Griffe extension of the documentation: aligned columns of a docstring become definition lists.

The docstrings of gvr_topk explain arguments in two aligned columns, which `help()` shows as they
are. Markdown would run them together.
"""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import griffe

_ENTRY = re.compile(r"(?P<term>\S+(?: \S+)*) {2,}(?P<text>\S.*)")


class AlignedDocstrings(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = with_definitions(obj.docstring.value)


def with_definitions(text: str) -> str:
    """The text with every run of `term  explanation` lines as a Markdown definition list."""
    return "\n\n".join(_paragraph(part) for part in re.split(r"\n{2,}", text))


def _paragraph(text: str) -> str:
    blocks: list[str] = []
    prose = False
    lines = text.split("\n")
    while lines:
        line = lines.pop(0)
        entry = _ENTRY.fullmatch(line)
        if entry is None:
            if prose:
                blocks[-1] += f"\n{line}"
            else:
                blocks.append(line)
        else:
            column = []
            while lines and lines[0].startswith(" "):
                column.append(lines.pop(0))
            # The explanation may be a table itself.
            below = dedent("\n".join(column)).split("\n")
            explanation = _paragraph("\n".join([entry["text"], *below])).strip()
            blocks.append(f"`{entry['term']}`\n\n:   " + explanation.replace("\n", "\n    "))
        prose = entry is None
    return "\n\n".join(blocks)
