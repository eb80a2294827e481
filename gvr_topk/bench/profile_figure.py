# SPDX-License-Identifier: Apache-2.0
"""What the warps of every profiled launch do, as stacked shares of their cycles."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .profile_record import ACTIVITIES, Launch

_COLOURS = ("C2", "#a6dba0", "C0", "C3", "C1", "C4", "0.55", "C5", "0.85")


def stalls(found: Sequence[Launch]) -> Figure | None:
    """One bar per launch, those of a cell beside each other; None where no stalls were counted."""
    shown = [launch for launch in found if launch.activities]
    if not shown:
        return None
    places, place = [], 0.0
    for before, launch in zip([None, *shown], shown, strict=False):
        place += 1.0 if before is None or before.cell == launch.cell else 1.6
        places.append(place)
    figure, axis = plt.subplots(figsize=(10, 1.4 + 0.27 * place), layout="constrained")
    left = [0.0] * len(shown)
    for name, colour in zip(ACTIVITIES, _COLOURS, strict=True):
        shares = [launch.activities[name] for launch in shown]
        axis.barh(places, shares, 0.85, left, label=name, color=colour)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axis.set_yticks(places, [f"{launch.cell}: {launch.contender}" for launch in shown], fontsize=8)
    axis.set(xlim=(0, 1), xlabel="share of the cycles of all warps")
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.invert_yaxis()
    figure.legend(ncols=5, fontsize=8, loc="outside upper center")
    return figure
