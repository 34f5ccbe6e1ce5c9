"""Pictures of many runs with matplotlib: curves with bands, bars, budget against result."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from advml.report.curves import AGAINST, AXES, Band, band, boundaries
from advml.report.formats import decimals, plus_minus
from advml.report.gather import overlap, split_of
from advml.report.layout import Picture, panelled, stacked, style_of
from advml.report.metrics import Metric, axis_title, interval_of, spent_by, values_by_seed
from advml.report.panels import Line, Panel
from advml.runner import figures

ENOUGH_TO_CUT = 15  # points of a curve whose beginning may run out of the frame
NEVER_NEGATIVE = ("loss", "mse", "mae", "rmse", "ece")


def draw_curves(panels: Sequence[Panel], metric: Metric, axis: str) -> Picture | None:
    """A line for the mean over seeds and a band around it; None where nothing was measured three times."""
    bands = {
        id(line): found
        for panel in panels
        for line in panel.lines
        if (found := band(line.group, metric.name, axis)) is not None and len(found.x) >= 3
    }
    drawn = [_with(panel, lines) for panel in panels if (lines := [line for line in panel.lines if id(line) in bands])]
    if not drawn:
        return None
    of = {id(panel): [bands[id(line)] for line in panel.lines] for panel in drawn}
    counts = {one.n for one in bands.values()}
    frames = {
        problem: _frame([one for panel in drawn if panel.problem == problem for one in of[id(panel)]])
        for problem in {panel.problem for panel in drawn}
    }

    def draw(axes: Axes, panel: Panel) -> None:
        for line in panel.lines:
            _curve(axes, line, bands[id(line)])
        _limits(axes, metric)
        if (frame := frames[panel.problem]) is not None:
            axes.set_ylim(*frame)
        if axis == "step":
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
            _phases(axes, panel)

    about = _about(list(bands.values()), drawn, metric)
    about += "; the first steps run out of the frame" if any(frames.values()) else ""
    shown = [panel if len(counts) == 1 else _counted(panel, of[id(panel)]) for panel in drawn]
    bands |= {id(new): bands[id(old)] for one, other in zip(shown, drawn, strict=True)
              for new, old in zip(one.lines, other.lines, strict=True)}  # fmt: skip
    return panelled(shown, draw, AXES[axis], axis_title(metric.name), about)


def draw_bars(panels: Sequence[Panel], metric: Metric, short: int = 0) -> Picture:
    """Mean, 95 % interval and each seed for every configuration, as bars from zero.

    Where all values lie far from zero bars would hide what differs, and a bar from anywhere else would lie: then the
    means are points on an axis that begins where the values do. `short`: configurations that have no mean, since not
    all of their seeds reached the target.
    """
    lines = [line for panel in panels for line in panel.lines]
    intervals = [found for line in lines if (found := interval_of(line.group, metric.name))]
    values = [value for line in lines for value in values_by_seed(line.group, metric.name).values()]
    far = min(values) > 0.6 * max(values) > 0
    places = decimals(intervals)

    def draw(axes: Axes, panel: Panel) -> None:
        for place, line in enumerate(panel.lines):
            found = interval_of(line.group, metric.name)
            assert found is not None
            if far:
                axes.plot(found.mean, place, "D", ms=7, color=figures.COLOURS[0], mec="black", mew=0.6, zorder=4)
            else:
                axes.barh(place, found.mean, height=0.5, color="#9CC9E6", edgecolor="#00476F", linewidth=0.8)
            if found.half is not None:
                axes.errorbar(found.mean, place, xerr=found.half, color="black", capsize=4, linewidth=1.4, zorder=3)
            seeds = list(values_by_seed(line.group, metric.name).values())
            if len(seeds) > 1:
                low = [place + 0.27] * len(seeds)
                axes.plot(seeds, low, "o", ms=3.5, mfc="white", mec="#444444", mew=0.8, zorder=4)
            axes.text(1.02, place, plus_minus(found, places), transform=axes.get_yaxis_transform(), va="center")
        axes.xaxis.set_major_locator(MaxNLocator(5))  # as many as have room with four decimals
        axes.set_xlim(*_possible(metric, *axes.get_xlim()))
        if not far:
            axes.axvline(0, color="black", linewidth=0.8)

    counts = sorted({interval.n for interval in intervals})
    begins = "; the axis does not begin at zero" if far else ""
    about = f"mean of {_range(counts)} seeds, line: {_t_interval(panels, metric)}, dots: each seed"
    about = ("one seed" if counts == [1] else about) + begins + _left_out(panels)
    about += f"; not drawn, since not all seeds reached it: {short}" if short else ""
    return stacked(panels, draw, axis_title(metric.name), about)


def draw_budget(panels: Sequence[Panel], metric: Metric, axis: str) -> Picture | None:
    """A point for each configuration: mean work (or size) against mean result, with 95 % intervals; None without it."""
    spent = {
        id(line): found for panel in panels for line in panel.lines if (found := spent_by(line.group, axis)) is not None
    }
    drawn = [_with(panel, lines) for panel in panels if (lines := [line for line in panel.lines if id(line) in spent])]
    if not drawn:
        return None
    amounts = [found.mean for found in spent.values()]
    most = max(found.high or found.mean for found in spent.values())

    def draw(axes: Axes, panel: Panel) -> None:
        for line in panel.lines:
            x, y, style = spent[id(line)], interval_of(line.group, metric.name), style_of(line.style)
            assert y is not None
            colour = style["color"]
            axes.errorbar(x.mean, y.mean, xerr=x.half, yerr=y.half, fmt="none", color=colour, linewidth=1.1, capsize=3)
            axes.plot(x.mean, y.mean, ms=7, mec="black", mew=0.6, linestyle="none", label=line.label, **style)
        if 0 < 20 * min(amounts) < max(amounts):
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, 1.06 * most or 1.0)
        _limits(axes, metric)

    about = f"mean over seeds, bars: {_t_interval(panels, metric)}"
    about = "one seed" if all(found.n == 1 for found in spent.values()) else about
    return panelled(drawn, draw, AGAINST[axis], axis_title(metric.name), about + _left_out(panels))


# --- parts --------------------------------------------------------------------------------------------------------


def _curve(axes: Axes, line: Line, found: Band) -> None:
    style, few = style_of(line.style), len(found.x) <= 30
    axes.plot(found.x, found.mean, label=line.label, linestyle=figures.DASHES[line.style % 4], linewidth=1.6,
              markevery=1 if few else max(1, len(found.x) // 12), markersize=4, **style)  # fmt: skip
    if found.kind != "none":
        axes.fill_between(found.x, found.low, found.high, color=style["color"], alpha=0.18, linewidth=0)


def _phases(axes: Axes, panel: Panel) -> None:
    """Thin lines where a task or a phase ends, named above, if all configurations of the panel agree on them."""
    found = [boundaries(line.group) for line in panel.lines]
    if not 2 <= len(found[0]) <= 12 or any(one != found[0] for one in found):
        return
    start = 0
    for name, stop in found[0]:
        axes.axvline(stop, color="#888888", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)
        axes.annotate(name, ((start + stop) / 2, 1), (0, -9), xycoords=("data", "axes fraction"),
                      textcoords="offset points", ha="center", fontsize=7.5, color="#555555")  # fmt: skip
        start = stop
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.07 * (high - low))  # room for the names


def _frame(bands: Sequence[Band]) -> tuple[float, float] | None:
    """Limits that leave out the first tenth of the curves, where that takes most of the height; otherwise None.

    Curves of few points are shown whole: a tenth of them is the first point, and that one says where they began.
    """
    if min(len(band.x) for band in bands) < ENOUGH_TO_CUT:
        return None
    start, stop = min(band.x[0] for band in bands), max(band.x[-1] for band in bands)
    every = [(x, y) for band in bands for ends in (band.low, band.high) for x, y in zip(band.x, ends, strict=True)]
    late = [y for x, y in every if x >= start + 0.1 * (stop - start)]
    low, high = min(late), max(late)
    whole = max(y for _, y in every) - min(y for _, y in every)
    return (low - 0.06 * (high - low), high + 0.06 * (high - low)) if 0 < 2 * (high - low) < whole else None


def _limits(axes: Axes, metric: Metric) -> None:
    axes.set_ylim(*_possible(metric, *axes.get_ylim()))


def _possible(metric: Metric, low: float, high: float) -> tuple[float, float]:
    """A fraction has no values outside [0, 1], and a loss none below 0, even where a symmetric interval has."""
    if "fraction" in axis_title(metric.name):
        return max(low, -0.02), min(high, 1.02)
    if metric.name.rpartition("/")[2] in NEVER_NEGATIVE:
        return max(low, -0.03 * high), high
    return low, high


def _with(panel: Panel, lines: Sequence[Line]) -> Panel:
    return Panel(panel.title, lines, panel.left_out)


def _counted(panel: Panel, bands: Sequence[Band]) -> Panel:
    """The panel with its seeds counted: in its title, or where its lines differ in that, at each of them."""
    counts = {one.n for one in bands}
    if len(counts) == 1:
        title = f"{panel.title} (n = {counts.pop()})" if panel.title else f"n = {counts.pop()}"
        return Panel(title, [Line(line.label, line.style, line.group) for line in panel.lines], panel.left_out)
    lines = [Line(f"{line.label} (n = {one.n})", line.style, line.group)
             for line, one in zip(panel.lines, bands, strict=True)]  # fmt: skip
    return Panel(panel.title, lines, panel.left_out)


def _about(bands: Sequence[Band], panels: Sequence[Panel], metric: Metric) -> str:
    """What line and band are."""
    counts = sorted({one.n for one in bands})
    if counts == [1]:
        return f"one seed{_left_out(panels)}"
    kinds = {one.kind for one in bands}
    says = [_t_interval(panels, metric)] if "t" in kinds else []
    if "range" in kinds:
        says.append("minimum to maximum" + (" where n = 2" if "t" in kinds else ""))
    return f"line: mean of {_range(counts)} seeds, band: {', '.join(says)}{_left_out(panels)}"


def _t_interval(panels: Sequence[Panel], metric: Metric) -> str:
    corrected = any(overlap([line.group], split_of(metric.name)) for panel in panels for line in panel.lines)
    return f"95 % t-interval{' (corrected for overlapping splits)' if corrected else ''}"


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _left_out(panels: Sequence[Panel]) -> str:
    left = sum(panel.left_out for panel in panels)
    return f"; the best are drawn, {left} configurations are not" if left else ""
