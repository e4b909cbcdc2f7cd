"""Cells of the documents' tables."""

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any


def table(*rows: Sequence[str]) -> str:
    """Return rows as Markdown, the first naming the columns."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in percent without the sign, or nothing for None."""
    return "" if share is None else f"{100 * share:.{digits}f}"


def interval(
    report: Mapping[str, Any], metric: str, scale: float = 100, digits: int = 1
) -> str:
    """Return a metric with its 95 % interval, where it has one."""
    text = f"{scale * report[metric]:.{digits}f}"
    if bounds := report[f"{metric}_interval"]:
        ends = bounds.values() if isinstance(bounds, dict) else bounds
        low, high = (f"{scale * end:.{digits}f}" for end in ends)
        text += f" [{low}, {high}]"
    return text


def spread(values: Sequence[float], scale: float, digits: int) -> str:
    """Return the mean, with its standard error if the values differ."""
    text = f"{scale * mean(values):.{digits}f}"
    if len(set(values)) > 1:
        error = scale * stdev(values) / sqrt(len(values))
        text += f" ± {error:.{digits}f}"
    return text
