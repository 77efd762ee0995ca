"""Plots of a report. One file each; fanwire stands out, everybody else is grey or the reference."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl  # type: ignore[import-not-found]

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import (  # type: ignore[import-not-found]
    FuncFormatter,
    NullFormatter,
)
from report import Report, number

PLAIN = FuncFormatter(lambda value, _: f"{value:,g}")
COLOURS = {
    "fanwire": "#c2410c",
    "fanwire_uvloop": "#fb923c",
    "reference": "#1d4ed8",
    "reference_uvloop": "#60a5fa",
}
OTHERS = "#94a3b8"
SHORT = {
    "fanwire": "fanwire",
    "fanwire_uvloop": "fanwire, uvloop",
    "reference": "reference",
    "reference_uvloop": "reference, uvloop",
    "reference_listen": "redis-py listen()",
    "glide": "valkey-glide",
    "broadcaster": "broadcaster",
    "channels_redis": "channels_redis",
    "socketio": "python-socketio",
    "litestar": "Litestar Channels",
    "coredis": "coredis",
    "faststream": "FastStream",
    "drain": "Redis alone",
}
# Panels of one plot: title, row key of the workload, and a line to draw.
Panel = tuple[str, str, str, float | None]
BARS: Mapping[str, tuple[str, Sequence[Panel]]] = {
    "firehose": (
        "CPU per message, µs (log scale; less is better)",
        (
            ("0 % watched", "unwatched", "cpu_us", None),
            ("2 % watched", "watched_2", "cpu_us", None),
            ("100 % watched", "watched", "cpu_us", None),
        ),
    ),
    "fanout": (
        "one message to many connections: CPU per delivery, µs (log scale; less is better)",
        (
            ("to 1", "fanout", "cpu_us_1", None),
            ("to 100", "fanout", "cpu_us_100", None),
            ("to 10,000", "fanout", "cpu_us_10000", None),
        ),
    ),
    "responsiveness": (
        "event-loop lag at 50,000 messages a second, p99, ms (log scale; less is better)",
        (
            ("2 % watched", "responsiveness", "p99_ms_2", 2.0),
            ("100 % watched", "responsiveness", "p99_ms_100", None),
        ),
    ),
    "publish": (
        "publishing (log scale)",
        (
            ("one by one: µs each (less is better)", "publish_serial", "each_us", None),
            ("50 at once: a second (more is better)", "publish_50", "per_second", None),
        ),
    ),
    "topics": (
        "sessions with topics: CPU each, µs (log scale; less is better)",
        (
            ("message: 1,000 topics, a session each", "topics", "topic_cpu_us", None),
            ("call: one topic, 1,000 sessions", "topics", "session_cpu_us", None),
            ("the same, 20 messages at once", "topics", "burst_cpu_us", None),
        ),
    ),
    "end_to_end": (
        "uvicorn and 200 WebSocket clients: publish to client, p99, ms (log scale; less is better)",
        (
            ("all clients reading", "end_to_end", "p99_ms", None),
            ("one of them not reading, the others'", "end_to_end", "stalled_p99_ms", None),
        ),
    ),
    "memory": (
        "bytes of RSS for each (log scale; less is better)",
        (
            ("connection", "memory", "connection_bytes", None),
            ("subscription", "memory", "subscription_bytes", None),
            ("connection with three subscriptions", "memory", "idle_bytes", 400.0),
        ),
    ),
}
# They SUBSCRIBE to each channel, so what nobody watches does not come to them at all.
FILTERED = ("broadcaster", "channels_redis", "litestar")
FILTERED_WORKLOADS = ("unwatched", "watched_2")
# Under which workload's table the plot is shown.
PLACES = {
    "firehose": "unwatched",
    "fanout": "fanout",
    "responsiveness": "responsiveness",
    "publish": "publish_serial",
    "topics": "topics",
    "end_to_end": "end_to_end",
    "memory": "memory",
    "growth": "growth",
}
GROWTH = {
    "unwatched": "message nobody here watches",
    "watched": "message for one connection",
    "fanout": "delivery of a message to 100",
}


def draw_all(report: Report, folder: Path) -> dict[str, str]:
    """Workload to the plot's path beside the folder's parent."""
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figures = {
        name: _bars(report, title, panels)
        for name, (title, panels) in BARS.items()
        if any(workload in report.workloads for _, workload, *_ in panels)
    }
    figures["growth"] = _growth(report)
    plots = {}
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        plt.close(figure)
        plots[PLACES[name]] = f"{folder.name}/{name}.png"
    return plots


def _bars(report: Report, title: str, panels: Sequence[Panel]) -> Any:
    names = [
        name
        for name in report.contenders
        if any(report.of(name, workload, key) for _, workload, key, _ in panels)
    ]
    height = 0.9 + 0.29 * len(names)
    figure, every = plt.subplots(
        1, len(panels), figsize=(4.0 * len(panels), height), sharey=True, layout="constrained"
    )
    figure.suptitle(title, fontsize=11)
    for axes, (heading, workload, key, line) in zip(every, panels, strict=True):
        medians = [report.median(name, workload, key) for name in names]
        finite = [figure for figure in medians if figure is not None and math.isfinite(figure)]
        low, high = min(finite) / 2, max(finite) * 4
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.xaxis.set_major_formatter(PLAIN)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(heading, fontsize=9.5)
        axes.grid(axis="x", which="major", color="#e2e8f0", linewidth=0.8)
        axes.set_axisbelow(True)
        if line is not None:
            axes.axvline(line, color="#15803d", linestyle="--", linewidth=1)
        for place, (name, middle) in enumerate(zip(names, medians, strict=True)):
            filtered = name in FILTERED and workload in FILTERED_WORKLOADS
            note = "  (Redis filters)" if filtered else ""
            _bar(axes, place, middle, COLOURS.get(name, OTHERS), (low, high), note)
    every[0].set_yticks(range(len(names)), [SHORT.get(name, name) for name in names])
    every[0].invert_yaxis()
    return figure


def _bar(
    axes: Any,
    place: int,
    middle: float | None,
    colour: str,
    limits: tuple[float, float],
    note: str,
) -> None:
    low, high = limits
    if middle is None:
        axes.text(low * 1.1, place, "not measured, or cannot", va="center", color="#64748b")
    elif math.isinf(middle):
        axes.barh(place, high - low, left=low, height=0.62, color=colour, alpha=0.2)
        axes.text(low * 1.1, place, "never arrives", va="center")
    else:
        alpha = 0.45 if note else 1.0
        axes.barh(place, middle - low, left=low, height=0.62, color=colour, alpha=alpha)
        axes.text(middle * 1.08, place, f"{number(middle)}{note}", va="center", fontsize=8)


def _growth(report: Report) -> Any:
    figure, every = plt.subplots(
        1, 3, figsize=(12, 3.6), sharex=True, sharey=True, layout="constrained"
    )
    figure.suptitle("cost as subscriptions grow: CPU each, µs (less is better)", fontsize=11)
    for axes, (kind, heading) in zip(every, GROWTH.items(), strict=True):
        for name in ("fanwire", "reference"):
            points = [
                (10**power, middle)
                for power in range(2, 7)
                if (middle := report.median(name, "growth", f"{kind}_us_1e{power}")) is not None
            ]
            if not points:
                continue
            counts, costs = zip(*points, strict=True)
            axes.plot(counts, costs, marker="o", color=COLOURS[name], label=name)
            for count, cost in (points[0], points[-1]):
                axes.annotate(
                    number(cost), (count, cost), (0, 7), textcoords="offset points", ha="center"
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(0.1, 40)
        axes.yaxis.set_major_formatter(PLAIN)
        axes.set_xlim(50, 2_000_000)
        axes.set_title(heading, fontsize=9.5)
        axes.set_xlabel("subscriptions")
        axes.grid(color="#e2e8f0", linewidth=0.8, which="major")
    every[0].legend(frameon=False, loc="center left")
    return figure
