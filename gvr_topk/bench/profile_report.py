# SPDX-License-Identifier: Apache-2.0
"""Blocks of the documentation about the profile; see report.py.

Every sentence is made from the numbers of the record. Without a record the blocks say how to make
one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cells import size_label
from .client_report import conditions
from .ladder import SHORT, Rung, rungs
from .markdown import markdown_table, paragraph
from .profile_record import Launch, launches, load

RECORD = "benchmarks/results/h200-profile.json"
PICTURE = "profile-stalls"
COMMAND = f"python -m gvr_topk.bench profile --out {RECORD}"
_MOST_NAMED = 4  # metrics that are not to be had
_SHOWN = ("global memory", "barrier", "fence", "shared memory", "arithmetic", "instruction fetch")


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} %"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def table(found: Sequence[Launch]) -> list[str]:
    heads = ["cell", "call", "us", "over the floor", "CTAs x threads", "DRAM", "issuing", *_SHOWN]
    lines = []
    for launch in found:
        counters, shares = launch.counters, launch.activities
        shape = f"{counters['grid']} x {counters['block']}" if "block" in counters else ""
        lines.append(
            [
                launch.cell,
                launch.contender,
                _us(launch.time_us),
                _times(launch.over_floor),
                shape,
                _percent(counters.get("dram_percent")),
                _share(shares.get("issuing")),
                *(_share(shares.get(name)) for name in _SHOWN),
            ]
        )
    return markdown_table(heads, lines)


def sentence(launch: Launch) -> str:
    """What the counters of one launch say, as far as ncu gave them."""
    counters, parts = launch.counters, []
    if launch.over_op is not None and launch.contender != "op":
        parts.append(f"{launch.over_op:.2f}x the bare operator")
    if "grid" in counters and launch.sm_count:
        warps = counters.get("occupancy_percent")
        parts.append(
            f"{counters['grid']} CTAs on {launch.sm_count} SMs"
            + (f", {warps:.0f} % of a busy SM's warp slots taken" if warps else "")
        )
    if "dram_percent" in counters:
        text = f"DRAM at {counters['dram_percent']:.0f} % of its peak"
        if read := counters.get("dram_read_bytes"):
            text += f" ({read / launch.scores_bytes:.2f} bytes read per byte of scores)"
        parts.append(text)
    waits = [f"{name} ({100 * share:.0f} %)" for name, share in launch.waits[:3] if share >= 0.05]
    if waits:
        parts.append(f"a warp waits for {', '.join(waits)}")
    if barriers := launch.barriers:
        cluster = barriers["UCGABAR_WAIT"]
        parts.append(
            f"{barriers['BAR']:.0f} CTA barriers"
            + (f" and {cluster:.0f} of the cluster" if cluster else "")
            + " per warp"
        )
    if rounds := launch.telemetry:
        parts.append(
            f"{rounds['passes']} read{'s' * (rounds['passes'] != 1)} of the slowest row, "
            f"refined in {rounds['refine_rounds']} rounds"
        )
    return f"**{launch.cell}, {launch.contender}: {launch.limit}.** {'; '.join(parts)}."


def _record(root: Path) -> dict[str, Any] | None:
    path = root / RECORD
    return load(path) if path.is_file() else None


def why(root: Path) -> list[str]:
    """The table, the plot and a sentence for every call that is not the floor."""
    record = _record(root)
    if record is None:
        return paragraph(f"*No record yet: `{COMMAND}` makes it, on a GPU with Nsight Compute.*")
    about = record["ncu"]
    found = launches(record)
    if not found:
        return paragraph(f"*The record has no counters: {about['problem']}.*")
    text = (
        f"*{conditions(record)}; Nsight Compute {about['version']}, clock control "
        f"{about['clock_control']}.*"
    )
    if missing := about["unavailable"]:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        text += f" Not to be had there: {', '.join(missing[:_MOST_NAMED])}{more}."
    if about["problem"]:
        text += f" Incomplete: {about['problem']}."
    lines = [*paragraph(text), "", *table(found), ""]
    if any(launch.activities for launch in found):
        lines += [f"![What the warps of every launch do](images/{PICTURE}.png)", ""]
    for launch in found:
        if launch.contender != "floor":
            lines += paragraph(f"* {sentence(launch)}", indent="  ")
    return lines


def ladder(root: Path) -> list[str]:
    """Launch, fixed cost and reading, by shape."""
    record = _record(root)
    if record is None:
        return paragraph(f"*No record yet: `{COMMAND}` makes it.*")
    if not record["ladder"]:
        return paragraph("*The record has no ladder.*")
    found = rungs(record["ladder"])
    return [*_ladder_table(found), "", *paragraph(_ladder_sentence(found))]


def _us(time: float | None) -> str:
    return "" if time is None else f"{time:.1f}" if time < 99.5 else f"{time:.0f}"


def _ladder_table(found: Sequence[Rung]) -> list[str]:
    heads = ["rows x N", "empty kernel", "floor", "floor-pdl", f"floor, N = {SHORT}"]
    heads += [f"`auto`'s kernel, N = {SHORT}", "`auto`", "reading", "plan"]
    lines = []
    for rung in found:
        times = (rung.launch, rung.floor, rung.floor_pdl, rung.floor_fixed, rung.fixed, rung.auto)
        shape = f"{rung.rows} x {size_label(rung.n)}"
        lines.append([shape, *map(_us, times), _us(rung.reading), rung.plan])
    return markdown_table(heads, lines)


def _ladder_sentence(found: Sequence[Rung]) -> str:
    shares = [(rung, rung.fixed_share) for rung in found]
    known = [(rung, share) for rung, share in shares if share is not None]
    if not known:
        return "The record has no shape of which every rung was measured."
    most, least = max(known, key=lambda k: k[1]), min(known, key=lambda k: k[1])

    def named(pair: tuple[Rung, float]) -> str:
        rung, share = pair
        return f"{100 * share:.0f} % ({rung.rows} x {size_label(rung.n)})"

    return (
        f"Of the time that `auto` takes beyond the floor, between {named(least)} and {named(most)} "
        f"are there on rows of {SHORT} scores already, without the reading."
    )


def summary(record: Mapping[str, Any]) -> list[str]:
    """Lines for a terminal."""
    lines = [sentence(launch) for launch in launches(record) if launch.contender != "floor"]
    if record["ladder"]:
        lines += _ladder_table(rungs(record["ladder"]))
    return [line.replace("**", "") for line in lines]
