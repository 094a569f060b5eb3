"""A picture of each dashboard without Grafana: its queries are asked of a Prometheus and drawn with matplotlib. For docs and mails.

Example: python deploy/grafana/draw.py http://127.0.0.1:9090 --hours 6 --out /tmp
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MultipleLocator

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

DASHBOARDS = Path(__file__).resolve().parent / "dashboards"
COLORS = {"green": "#56a64b", "yellow": "#e0a800", "red": "#d64550"}
# Inches: a row of Grafana's grid, what a panel leaves around its plot, and the heading.
ROW, LEFT, RIGHT, ABOVE, BELOW, HEADING, WIDE = 0.36, 0.75, 0.12, 0.3, 0.2, 0.55, 16.0
LEGEND_LINES = 3
Json = dict[str, Any]


def with_prefix(value: float) -> str:
    """1234567 as 1.23M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def duration(value: float) -> str:
    """Seconds as people say them."""
    if 0 < abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if abs(value) < 120 else f"{value / 60:.3g} min"


UNITS: dict[str, Callable[[float], str]] = {
    "percentunit": lambda value: f"{value * 100:.3g} %",
    "s": duration,
    "bytes": lambda value: with_prefix(value) + "B",
    "reqps": lambda value: with_prefix(value) + "/s",
    "cps": lambda value: with_prefix(value) + "/s",
    "d": lambda value: f"{value:.0f} d",
}


class Source:
    """A Prometheus, and the span of time that is drawn."""

    def __init__(self, url: str, begin: float, end: float) -> None:
        self.begin, self.end = begin, end
        self._client = httpx.Client(base_url=url, timeout=30)

    def ask(self, target: Json) -> list[tuple[str, list[tuple[float, float]]]]:
        """Names and points of each series that a panel's query gives."""
        expr = target["expr"].replace("$__rate_interval", "5m").replace("$provider", ".*").replace("$tier", ".*")
        if target["instant"]:
            answer = self._client.get("/api/v1/query", params={"query": expr, "time": self.end})
        else:
            step = max(15.0, (self.end - self.begin) / 400)
            span = {"start": self.begin, "end": self.end, "step": step}
            answer = self._client.get("/api/v1/query_range", params={"query": expr, **span})
        answer.raise_for_status()
        found = []
        for series in answer.json()["data"]["result"]:
            name = target["legendFormat"]
            for label, text in series["metric"].items():
                name = name.replace("{{" + label + "}}", text)
            if name == "__auto":
                name = " ".join(text for label, text in series["metric"].items() if label != "__name__")
            found.append((name, [(float(at), float(value)) for at, value in series.get("values", [series.get("value")])]))
        return sorted(found)


def days(second: float) -> float:
    """An instant as matplotlib counts time: days since 1970."""
    return second / 86400


def hours(source: Source) -> float:
    """Between two marks of the time axis."""
    return max(0.5, round((source.end - source.begin) / 3600 / 6))


def colour_of(value: float, thresholds: Json) -> str:
    """The colour of the highest step that the value reaches."""
    colour = "green"
    for step in thresholds["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return COLORS[colour]


def draw_number(axes: Axes, panel: Json, source: Source) -> None:
    """A coloured box with a number."""
    defaults = panel["fieldConfig"]["defaults"]
    found = source.ask(panel["targets"][0])
    value = found[0][1][-1][1] if found else math.nan
    text = defaults.get("noValue", "no data") if math.isnan(value) else UNITS.get(defaults["unit"], with_prefix)(value)
    axes.set_facecolor("#9aa0a6" if math.isnan(value) else colour_of(value, defaults["thresholds"]))
    axes.text(0.5, 0.45, text, ha="center", va="center", color="white", fontsize=17, fontweight="bold", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_lines(axes: Axes, panel: Json, source: Source) -> None:
    """Lines or stacked areas over time."""
    defaults = panel["fieldConfig"]["defaults"]
    found = [(target["refId"], *series) for target in panel["targets"] for series in source.ask(target)]
    show = UNITS.get(defaults["unit"], with_prefix)
    columns = max(2, int(axes.get_position().width * WIDE / 1.3))
    palette = plt.get_cmap("tab10" if len(found) <= 10 else "tab20")
    floor: dict[float, float] = {}
    highest = 0.0
    for place, (_, name, points) in enumerate(found):
        at = [days(second) for second, _ in points]
        values = [value for _, value in points]
        label = name if place < LEGEND_LINES * columns else None
        colour = palette(place % palette.N)
        if "stacking" in defaults["custom"]:
            below = [floor.get(second, 0.0) for second, _ in points]
            top = [low + value for low, value in zip(below, values, strict=True)]
            axes.fill_between(at, below, top, label=label, color=colour, alpha=0.6, linewidth=0)
            floor |= {second: value for (second, _), value in zip(points, top, strict=True)}
            values = top
        else:
            style = "--" if name.endswith("objective") else "-"
            axes.plot(at, values, style, label=label, color=colour, linewidth=1.1)
        highest = max([highest, *(value for value in values if not math.isnan(value))])
    for step in defaults.get("thresholds", {"steps": []})["steps"]:
        if step["value"] is not None and step["value"] <= 1.3 * highest:
            axes.axhline(step["value"], color=COLORS[step["color"]], linestyle=":", linewidth=1)
    if not found:
        axes.text(0.5, 0.5, defaults.get("noValue", "no data"), ha="center", va="center", color="gray", transform=axes.transAxes)
    axes.set_ylim(bottom=0, top=1.08 * highest or 1)
    as_on_axis(axes, source, show)
    if defaults["unit"] == "s" and highest > 120:
        axes.yaxis.set_major_locator(MultipleLocator(60 * math.ceil(highest / 300)))
    if found:
        under = (-0.02, -0.13)
        axes.legend(
            fontsize=6, ncols=columns, loc="upper left", bbox_to_anchor=under, frameon=False, handlelength=1, columnspacing=0.8
        )


def as_on_axis(axes: Axes, source: Source, show: Callable[[float], str]) -> None:
    """Times below, values with their unit beside."""
    axes.set_xlim(days(source.begin), days(source.end))
    axes.xaxis.set_major_locator(MultipleLocator(hours(source) / 24))
    axes.xaxis.set_major_formatter(lambda day, _: f"{datetime.fromtimestamp(round(day * 86400), UTC):%H:%M}")
    axes.yaxis.set_major_formatter(lambda value, _: show(value))
    axes.tick_params(labelsize=6.5, length=2)
    axes.grid(visible=True, color="#e8e8e8", linewidth=0.6)
    axes.set_axisbelow(True)


def draw_states(axes: Axes, panel: Json, source: Source) -> None:
    """Bars of colour over time, one row a series."""
    options = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    found = [series for target in panel["targets"] for series in source.ask(target)]
    for place, (_, points) in enumerate(found):
        for (begin, value), (end, _) in zip(points, [*points[1:], (source.end, 0.0)], strict=True):
            colour = COLORS[options[f"{value:g}"]["color"]]
            axes.broken_barh([(days(begin), days(end - begin))], (place - 0.35, 0.7), color=colour)
    axes.set_yticks(range(len(found)), [name for name, _ in found], fontsize=6.5)
    axes.set_xlim(days(source.begin), days(source.end))
    axes.xaxis.set_major_locator(MultipleLocator(hours(source) / 24))
    axes.xaxis.set_major_formatter(lambda day, _: f"{datetime.fromtimestamp(round(day * 86400), UTC):%H:%M}")
    axes.tick_params(labelsize=6.5, length=2)
    axes.set_ylim(-0.6, max(len(found), 1) + 0.3)
    for option in options.values():
        axes.plot([], [], color=COLORS[option["color"]], linewidth=5, label=option["text"])
    axes.legend(fontsize=6, ncols=3, loc="upper left", frameon=False, handlelength=1)


def draw_bars(axes: Axes, panel: Json, source: Source) -> None:
    """A horizontal bar a series, in the colour of its value."""
    defaults = panel["fieldConfig"]["defaults"]
    found = [(name, points[-1][1]) for target in panel["targets"] for name, points in source.ask(target)]
    for place, (_, value) in enumerate(reversed(found)):
        axes.barh(place, value, color=colour_of(value, defaults["thresholds"]), height=0.6)
        axes.text(max(value, 0) + 0.01, place, UNITS[defaults["unit"]](value), va="center", fontsize=6.5)
    axes.set_yticks(range(len(found)), [name for name, _ in reversed(found)], fontsize=6.5)
    axes.set_xlim(0, 1.15)
    axes.set_xticks([])


def draw_table(axes: Axes, panel: Json, source: Source) -> None:
    """Names and values."""
    found = [(name, points[-1][1]) for target in panel["targets"] for name, points in source.ask(target)]
    text = "\n".join(f"{name}   {value:g}" for name, value in found) or panel["fieldConfig"]["defaults"].get("noValue", "")
    axes.text(0.03, 0.92, text, va="top", fontsize=8, family="monospace", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


DRAW = {"stat": draw_number, "timeseries": draw_lines, "state-timeline": draw_states, "bargauge": draw_bars, "table": draw_table}


def draw(dashboard: Json, source: Source, file: Path) -> None:
    """One dashboard into one PNG, its panels where Grafana would put them."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    tall = HEADING + ROW * rows + 0.2
    figure = plt.figure(figsize=(WIDE, tall), dpi=90, facecolor="#f4f5f5")
    day = datetime.fromtimestamp(source.end, UTC)
    figure.suptitle(f"{dashboard['title']}, until {day:%Y-%m-%d %H:%M} UTC", x=0.012, y=0.992, ha="left", va="top", fontsize=14)
    said = "Drawn from the dashboard's queries and a Prometheus by deploy/grafana/draw.py, not by Grafana."
    figure.text(0.985, 0.99, said, ha="right", va="top", fontsize=8, color="#666666")
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        has_legend = panel["type"] == "timeseries"
        left = at["x"] * WIDE / 24 + (RIGHT if panel["type"] == "stat" else 1.1 if panel["type"] == "state-timeline" else LEFT)
        below = tall - HEADING - ROW * (at["y"] + at["h"]) + BELOW + (0.42 if has_legend else 0)
        right = (at["x"] + at["w"]) * WIDE / 24 - RIGHT
        top = tall - HEADING - ROW * at["y"] - ABOVE
        axes = figure.add_axes((left / WIDE, below / tall, (right - left) / WIDE, (top - below) / tall))
        for spine in axes.spines.values():
            spine.set_color("#d0d0d0")
        axes.set_title("\n".join(textwrap.wrap(panel["title"], 60)), fontsize=9, loc="left", pad=4)
        DRAW[panel["type"]](axes, panel, source)
    figure.savefig(file)
    plt.close(figure)


def main() -> int:
    """Draw every dashboard into OUT."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("url", metavar="URL", help="of a Prometheus")
    said.add_argument("--hours", type=float, default=6.0, help="how much of the past (6)")
    said.add_argument("--until", type=datetime.fromisoformat, help="the end, such as 2026-11-20T21:30:00Z; now")
    said.add_argument("--out", type=Path, default=Path(), help="where the pictures go (here)")
    arguments = said.parse_args()
    end = arguments.until.timestamp() if arguments.until else time.time()
    source = Source(arguments.url, end - 3600 * arguments.hours, end)
    for path in sorted(DASHBOARDS.glob("*.json")):
        draw(json.loads(path.read_text("utf-8")), source, arguments.out / f"{path.stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
