"""The paper's figures with our points: each takes groups of runs and writes one PNG."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from vdsr import plots
from vdsr.results import published
from vdsr.results.runs import Benchmark, Group
from vdsr.results.section import percent, scale_set, shown

DIVERGED: dict[str, Any] = {"linestyle": "none", "marker": "x", "color": plots.COLOURS[1], "markersize": 8}


def depth(points: Sequence[Group], benchmarks: Sequence[Benchmark], path: Path) -> None:
    """PSNR against the number of layers, a panel a scale (figure 3)."""
    figure = plots.figure(2.9)
    panels = figure.subplots(1, len(benchmarks), squeeze=False)[0]
    for number, (axes, benchmark) in enumerate(zip(panels, benchmarks, strict=True)):
        found = [(g.first["model.depth"], f) for g in points if (f := g.figure(benchmark))]
        axes.errorbar(
            [d for d, _ in found],
            [f.mean for _, f in found],
            yerr=[f.sd or 0 for _, f in found] if any(f.sd for _, f in found) else None,
            capsize=3,
            **plots.style(number),
        )
        axes.set_xticks([d for d, _ in found])
        axes.margins(y=0.2)
        plots.plain(axes, "depth D (layers)", "PSNR (dB)" if number == 0 else "", shown(benchmark))
    plots.save(figure, path)


def theta(points: Sequence[Group], benchmarks: Sequence[Benchmark], path: Path) -> None:
    """Gain over bicubic against θ by value; the fixed norm and no clipping as levels (dashed)."""
    figure = plots.figure()
    axes = figure.subplots()
    by_value = [g for g in points if g.first["clip.theta"] is not None]
    dead = [float(g.first["clip.theta"]) for g in by_value if not g.benchmarks]
    for number, benchmark in enumerate(benchmarks):
        found = [(float(g.first["clip.theta"]), g.value(benchmark, "gain")) for g in by_value if g.benchmarks]
        axes.plot(*zip(*found, strict=True), label=shown(benchmark), **plots.style(number)) if found else None
        for group in points:
            gain = group.value(benchmark, "gain")
            if group.first["clip.theta"] is None and gain is not None:
                norm = group.first["clip.max_norm"]
                colour = plots.COLOURS[number]
                axes.axhline(gain, color=colour, linewidth=1, linestyle=(0, (5, 3) if norm else (1, 2)))
    axes.axhline(0, color=plots.GREY, linewidth=1)
    if dead:
        axes.plot(dead, [0] * len(dead), label="did not finish", **DIVERGED)
    axes.set_xscale("log")
    plots.plain(axes, "θ (dashed: fixed norm; dotted: no clipping)", "PSNR above bicubic (dB)")
    axes.legend(fontsize=8, frameon=False)
    plots.save(figure, path)


def scale_sets(points: Sequence[Group], benchmarks: Sequence[Benchmark], path: Path) -> None:
    """Gain over bicubic of each scale set at each scale, as a heat map (table 2)."""
    gains = [[g.value(b, "gain") for g in points] for b in benchmarks]
    largest = max((abs(gain) for row in gains for gain in row if gain is not None), default=1.0) or 1.0
    figure = plots.figure(0.9 + 0.62 * len(benchmarks), min(plots.WIDTH, 2 + 0.8 * len(points)))
    axes = figure.subplots()
    cells = [[math.nan if gain is None else gain for gain in row] for row in gains]
    limit = 1.6 * largest  # the ends of the colour map are too dark to print on
    image = axes.imshow(cells, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    for row, benchmark in enumerate(benchmarks):
        for column, group in enumerate(points):
            psnr = group.value(benchmark)
            text = "–" if psnr is None else f"{psnr:.2f}\n{cells[row][column]:+.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(points)), [scale_set(group.first.scales) for group in points], fontsize=8)
    axes.set_yticks(range(len(benchmarks)), [shown(benchmark) for benchmark in benchmarks], fontsize=8)
    axes.set_xlabel("trained on", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.ax.set_ylim(-largest, largest)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("dB above bicubic", fontsize=8)
    plots.save(figure, path)


def residual(points: Sequence[Group], benchmark: Benchmark, path: Path) -> None:
    """PSNR by epoch, residual against plain, a panel a learning rate (figure 4)."""
    rates = sorted({float(group.first["optim.lr"]) for group in points}, reverse=True)
    figure = plots.figure(3.1)
    panels = figure.subplots(1, len(rates), squeeze=False, sharey=True)[0]
    for axes, rate in zip(panels, rates, strict=True):
        at_rate = [group for group in points if float(group.first["optim.lr"]) == rate]
        for group in sorted(at_rate, key=lambda g: not g.first["model.residual"]):
            number = 0 if group.first["model.residual"] else 1
            label = "residual" if number == 0 else "plain"
            _curves(axes, group, benchmark, number, label)
        if (rate, benchmark) == (published.RESIDUAL_LR, published.RESIDUAL_SCORED):
            for number, with_residual in enumerate((True, False)):
                found = published.RESIDUAL[with_residual]
                look = {**plots.style(number), "markerfacecolor": "white", "linestyle": ":", "linewidth": 1}
                axes.plot([*found], [*found.values()], label="" if number else "paper", **look)
        plots.plain(
            axes, "epoch (of 80)", f"PSNR on {shown(benchmark)} (dB)" if axes is panels[0] else "", f"γ₀ = {rate:g}"
        )
        axes.set_xticks([0, *published.RESIDUAL[True]])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    plots.save(figure, path)


def training(groups: Sequence[Group], benchmarks: Sequence[Benchmark], path: Path) -> None:
    """PSNR while each network trains, a panel a scale; the paper's final figures as dashed levels."""
    figure = plots.figure(3.1)
    panels = figure.subplots(1, len(benchmarks), squeeze=False)[0]
    for axes, benchmark in zip(panels, benchmarks, strict=True):
        for number, group in enumerate(groups):
            _curves(axes, group, benchmark, number, f"{group.network}, {percent(group.share)}")
        for method, side in (("SRCNN", "bottom"), ("VDSR", "top")):
            level = published.psnr(*benchmark, method)
            if level is not None:
                axes.axhline(level, color=plots.GREY, linewidth=1, linestyle="--")
                axes.text(1, level, f"{method}, paper", fontsize=7, color="#555555", va=side)
        bicubic = published.psnr(*benchmark, "bicubic")
        highest = max((psnr for g in groups for run in g.runs for _, psnr in run.curve(benchmark)), default=0.0)
        if bicubic is not None and highest > bicubic:
            axes.set_ylim(bottom=bicubic - 0.3)  # below it lies nothing but the start
        axes.margins(y=0.1)
        axes.set_xlim(left=0)
        plots.plain(axes, "epoch (of 80)", "PSNR (dB)" if axes is panels[0] else "", shown(benchmark))
    lines = panels[0].get_legend_handles_labels()
    title = "share of the paper's patches"
    figure.legend(*lines, loc="outside upper right", ncols=3, fontsize=7, frameon=False, title=title, title_fontsize=7)
    plots.save(figure, path)


def speed(groups: Sequence[Group], benchmark: Benchmark, path: Path) -> None:
    """PSNR against seconds per image (figure 1): the paper's machine hollow, ours filled."""
    figure = plots.figure()
    axes = figure.subplots()
    for method, figures in published.BENCHMARK.get(benchmark, {}).items():
        if figures.seconds:
            axes.plot(figures.seconds, figures.psnr, "o", color=plots.GREY, markerfacecolor="white", markersize=8)
            below = method == "RFL"  # as fast and as good as A+
            _label(axes, figures.seconds, figures.psnr, f"{method}, paper", below)
    for number, group in enumerate(groups):
        psnr, seconds = group.value(benchmark), group.first.seconds_per_image(benchmark[0])
        if psnr is not None and seconds:
            label = f"{group.first.network}, ours: {group.first.hardware}"
            axes.plot(seconds, psnr, markersize=8, linestyle="none", label=label, **plots.style(number))
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.margins(x=0.1, y=0.2)
    figure.legend(fontsize=8, frameon=False, loc="outside upper left")
    plots.plain(axes, "seconds per image (faster to the right)", f"PSNR on {shown(benchmark)} (dB)")
    plots.save(figure, path)


def _label(axes: Axes, x: float, y: float, text: str, below: bool = False) -> None:
    place, side = ((0, -8), "top") if below else ((0, 8), "bottom")
    axes.annotate(text, (x, y), place, textcoords="offset points", fontsize=7.5, ha="center", va=side)


def _curves(axes: Axes, group: Group, benchmark: Benchmark, number: int, label: str) -> None:
    """A line a seed, over the share of its schedule as the paper counts it; a cross where one diverged."""
    for run in group.runs:
        found = run.curve(benchmark)
        x, y = [published.EPOCHS * share for share, _ in found], [psnr for _, psnr in found]
        few = len(found) <= 20
        look = plots.style(number) if few else {"color": plots.COLOURS[number % len(plots.COLOURS)]}
        axes.plot(x, y, label=label if run is group.first else None, markersize=4, **look)
        if run.record["status"] == "diverged" and found:
            axes.plot(x[-1], y[-1], **DIVERGED)
