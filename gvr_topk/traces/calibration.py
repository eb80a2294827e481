# SPDX-License-Identifier: Apache-2.0
"""How the synthetic characters were fitted: figures of a trace, and a search for equal ones.

\b
    python -m gvr_topk.traces.calibration figures A=trace_A_layer6.safetensors --out figures.json
    python -m gvr_topk.traces.calibration fit figures.json A --start ordinary --minutes 10

`gvr_topk/data/calibration.json` holds the figures of the two recordings and of the characters
that were fitted to them.
"""

from __future__ import annotations

import functools
import json
import math
import random
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from tqdm import tqdm

from . import synth
from .factored import Trace
from .synth import CHARACTERS, Character, SynthSpec, approximate_scores, synthesise

LENGTHS = (8192, 32768, 65536, 130944)  # the last: what every step of 128 sees of 131,072 keys
WINNERS = (512, 2048)
RECENT = 1024
COMMITTED = Path(__file__).parents[1] / "data" / "calibration.json"

Figures = dict[str, dict[str, float]]

# What counts as one unit of error in the fit, by figure.
_TOLERANCE = {
    "mean": 0.5,
    "deviation": 0.2,
    "skewness": 0.5,
    "kurtosis": 0.7,
    "overlap": 0.04,
    "recent": 0.07,
    "ties_bf16": 0.6,
}
# Where the fit may look. Shares of keys are measured, not fitted.
_RANGES = {
    "key_content": (0.05, 0.5),
    "query_content": (0.2, 0.7),
    "local_heads": (0.2, 1.0),
    "locality": (0.3, 1.0),
    "reach": (10.0, 60_000.0),
    "reach_spread": (0.8, 4.0),
    "content_near": (-1.0, 1.0),
    "content_far": (-1.0, 1.0),
    "repulsion": (0.0, 1.0),
    "weight_mean": (-0.6, 0.6),
    "query_change": (0.05, 0.6),
    "weight_change": (0.02, 0.6),
    "persistence": (0.0, 0.8),
    "topic": (0.0, 0.8),
}


def committed() -> dict[str, Figures]:
    """The figures of recordings and characters that come with the package."""
    return json.loads(COMMITTED.read_text())["figures"]


def figures(trace: Trace, pairs: int = 8) -> Figures:
    """Moments of the rows by length, and figures of their Top-K by "K/N".

    Over `pairs` pairs of consecutive steps, evenly spread. By N: mean in standard deviations,
    deviation, skewness, excess kurtosis. By K and N: overlap of consecutive answers, share of
    winners among the 1,024 most recent keys, scores equal to the K-th in bf16.
    """
    if trace.steps < 2:
        raise ValueError(f"trace: got {trace.steps} step, need at least 2")
    firsts = [i * (trace.steps - 1) // pairs for i in range(pairs)]
    found: dict[str, dict[str, list[float]]] = {}

    def note(place: str, **values: float) -> None:
        for name, value in values.items():
            found.setdefault(place, {}).setdefault(name, []).append(value)

    steps = approximate_scores(trace, [step for first in firsts for step in (first, first + 1)])
    for first, rows in zip(firsts, steps.split(2), strict=True):
        # Both steps in the columns of the earlier one, so that places are positions.
        rows = rows[:, : trace.visible(first)]
        for n in LENGTHS:
            if n > trace.visible(0):
                continue
            before, now = (row[-n:] for row in rows)
            note(str(n), **_moments(now))
            for k in WINNERS:
                top = now.topk(k).indices
                rounded = now.bfloat16()
                note(
                    f"{k}/{n}",
                    overlap=torch.isin(top, before.topk(k).indices).float().mean().item(),
                    recent=(top >= n - RECENT).float().mean().item(),
                    ties_bf16=float((rounded == rounded.topk(k).values[-1]).sum()),
                )
    return {
        place: {name: sum(values) / len(values) for name, values in about.items()}
        for place, about in found.items()
    }


def _moments(row: Tensor) -> dict[str, float]:
    scores = row.double()
    deviation = scores.std()
    standard = (scores - scores.mean()) / deviation
    return {
        "mean": (scores.mean() / deviation).item(),
        "deviation": deviation.item(),
        "skewness": standard.pow(3).mean().item(),
        "kurtosis": standard.pow(4).mean().item() - 3,
    }


def distance(found: Figures, wanted: Figures) -> float:
    """Mean squared error in units of _TOLERANCE; deviations and ties are compared as ratios."""
    errors = []
    for place, about in wanted.items():
        for name, value in about.items():
            error = found[place][name] - value
            if name in ("deviation", "ties_bf16"):
                error = math.log(found[place][name] / value)
            errors.append((error / _TOLERANCE[name]) ** 2)
    return sum(errors) / len(errors)


def of_character(character: Character, seeds: tuple[int, ...] = (0, 1)) -> Figures:
    """Mean figures of traces with 128K keys and 128 steps."""
    each = [
        figures(synthesise(SynthSpec(131072, 128, character=character, seed=seed)), pairs=4)
        for seed in seeds
    ]
    return {
        place: {name: sum(one[place][name] for one in each) / len(each) for name in about}
        for place, about in each[0].items()
    }


def fit(wanted: Figures, start: Character, minutes: float, seed: int = 0) -> Character:
    """Random search: mutations of the best characters so far, until the time is up."""
    synth.key_draws = functools.cache(synth.key_draws)  # the same chance for every character
    dice = random.Random(seed)
    start = replace(start, scale=wanted["65536"]["deviation"])
    best = [(distance(of_character(start), wanted), start)]
    end = time.monotonic() + 60 * minutes
    progress = tqdm(unit=" characters", desc="fitting")
    while time.monotonic() < end:
        parent = dice.choice(best[:4])[1]
        size = dice.choice((0.02, 0.06, 0.15))
        changes = {}
        for name, (low, high) in _RANGES.items():
            if dice.random() < 0.5:
                value = getattr(parent, name)
                if name == "reach":  # a length: by ratio
                    value *= math.exp(dice.gauss(0, size) * math.log(high / low))
                else:
                    value += dice.gauss(0, size) * (high - low)
                changes[name] = min(max(value, low), high)
        child = replace(parent, **changes)
        best.append((distance(of_character(child), wanted), child))
        best = sorted(best, key=lambda pair: pair[0])[:8]
        progress.set_postfix(distance=f"{best[0][0]:.3f}")
        progress.update(1)
    progress.close()
    return best[0][1]


app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)


@app.command("figures")
def figures_command(
    sources: Annotated[list[str], typer.Argument(help="NAME=FILE of factored traces.")],
    out: Annotated[Path, typer.Option(help="The JSON to write.")],
) -> None:
    """Measure recordings, and the characters beside them."""
    report: dict[str, Any] = {}
    for source in tqdm(sources):
        name, _, path = source.partition("=")
        report[name] = figures(Trace.load(path))
    for name, character in tqdm(CHARACTERS.items()):
        report[name] = of_character(character)
    rounded = {
        name: {
            place: {key: round(value, 3) for key, value in about.items()}
            for place, about in about_trace.items()
        }
        for name, about_trace in report.items()
    }
    text = {"recent": RECENT, "figures": rounded}
    out.write_text(json.dumps(text, indent=1) + "\n")


@app.command("fit")
def fit_command(
    measured: Annotated[Path, typer.Argument(help="JSON written by `figures`.")],
    name: Annotated[str, typer.Argument(help="The recording to fit.")],
    start: Annotated[str, typer.Option(help="The character to start from.")] = "ordinary",
    minutes: Annotated[float, typer.Option(help="How long to search.")] = 10.0,
) -> None:
    """Search for the character whose figures are those of a recording, and print it."""
    wanted = json.loads(measured.read_text())["figures"][name]
    found = asdict(fit(wanted, CHARACTERS[start], minutes))
    for item in fields(Character):
        print(f"    {item.name}={found[item.name]:.4g},")


if __name__ == "__main__":
    app()
