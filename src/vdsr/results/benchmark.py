"""Table 3: bicubic, SRCNN and VDSR on the benchmarks, ours beside the paper's."""

from collections.abc import Sequence

from vdsr.results import charts, published
from vdsr.results.cells import budget, difference, picture, seeds
from vdsr.results.runs import Benchmark, Group, Run, benchmarks, series
from vdsr.results.section import NOTHING, Part, Section, Table, Verdict, decibels, holds, shown, signed, trained_with

RANKED = [benchmark for benchmark in published.BENCHMARK if benchmark[0] == published.SETS[0]]


def benchmark(runs: Sequence[Run]) -> Section:
    """Table 3: bicubic, SRCNN and VDSR on the benchmarks."""
    question = "Does the paper's final network come out? 291 images, D = 20, one network for ×2, ×3 and ×4."
    groups = _networks_of(runs)
    vdsr = _best([group for group in groups if group.network == "VDSR"])
    others = [group for group in groups if group.first.network == "SRCNN"]
    alike = [group for group in others if vdsr and _as_much(group) == _as_much(vdsr)]
    srcnn = _best(alike) or _best(others)
    parts = []
    if either := vdsr or srcnn:
        title = f"The best network, with {budget(either)}"
        parts.append(Part(title, [_beside(srcnn, vdsr)], _verdicts(srcnn, vdsr)))
    if groups:
        pictures = []
        followed = [group for group in groups if any(run.record["validations"] for run in group.runs)]
        first = next((b for b in benchmarks(groups) if b in published.BENCHMARK), None)
        if first and followed:
            panels = [b for b in benchmarks(groups) if b[0] == first[0] and not b[1] % 1]
            pictures.append(picture("training", "PSNR by epoch of each network", charts.training, followed[:6], panels))
        timed = [g for g in (srcnn, vdsr) if g and first and g.first.seconds_per_image(first[0])]
        if timed and first:
            pictures.append(picture("speed", "PSNR against seconds per image", charts.speed, timed, first))
        parts.append(Part("Every network", [_networks(groups)], pictures=pictures))
    return Section("Benchmark (table 3)", question, parts, runs)


def _networks_of(runs: Sequence[Run]) -> list[Group]:
    """A group a network; networks of one scale each, as SRCNN is published, together are one."""
    single = [run for run in runs if _single(run)]
    found = [points[0] for points in series(run for run in runs if not _single(run))]
    found += [Group(tuple(run for point in points for run in point.runs)) for points in series(single, "data.scales")]
    return sorted(found, key=lambda group: (-group.share, group.first.data, str(group.first.path)))


def _single(run: Run) -> bool:
    """Whether it is a network of one scale that is scored at no other."""
    scored = run["data.test_scales"] or run["data.val_scales"] or run["data.scales"]
    return len(run.scales) == 1 and set(scored) == set(run.scales)


def _as_much(group: Group) -> float:
    """What it was trained with, to two digits, as steps are whole numbers."""
    return float(f"{group.share:.2g}")


def _best(groups: Sequence[Group]) -> Group | None:
    """The network with the highest mean PSNR on Set5, which every one of them is scored on."""
    scored = [group for group in groups if all(group.value(b) is not None for b in RANKED)]
    return max(scored, key=lambda group: sum(group.value(b) or 0 for b in RANKED), default=None)


def _beside(srcnn: Group | None, vdsr: Group | None) -> Table:
    """A row a set and scale; ours above the paper's with the difference in each cell."""
    trained = ["trained with", "", *(_trained(group) for group in (srcnn, vdsr))]
    rows = [trained]
    for key in published.BENCHMARK:
        either = vdsr or srcnn
        bicubic = _pair(either, key, "bicubic", "bicubic_psnr", "bicubic_ssim")
        rows.append([shown(key), bicubic, *(_pair(g, key, n) for g, n in ((srcnn, "SRCNN"), (vdsr, "VDSR")))])
    return Table(["PSNR (dB) / SSIM", "bicubic", "SRCNN", "VDSR"], rows)


def _trained(group: Group | None) -> str:
    if not group:
        return NOTHING
    trained = trained_with(group.first)
    if (networks := len(group.scale_sets)) > 1:
        trained = f"{networks} networks, each with {trained}"
    return f"{trained}\n{seeds(group)}"


def _pair(group: Group | None, key: Benchmark, method: str, psnr: str = "psnr", ssim: str = "ssim") -> str:
    paper = published.BENCHMARK[key][method]
    ours = [group.figure(key, psnr), group.figure(key, ssim)] if group else [None, None]
    if ours[0] is None or ours[1] is None:
        return f"ours {NOTHING}\npaper {paper.psnr:.2f} / {paper.ssim:.4f}"
    difference = f"{signed(ours[0].mean - paper.psnr)} / {signed(ours[1].mean - paper.ssim, 4)}"
    figures = f"ours {decibels(ours[0])} / {decibels(ours[1], digits=4)}"
    return f"{figures}\npaper {paper.psnr:.2f} / {paper.ssim:.4f} ({difference})"


def _networks(groups: Sequence[Group]) -> Table:
    tested = [b for b in benchmarks(groups) if not b[1] % 1]
    rows = [
        [
            g.network,
            g.first.data,
            *(decibels(g.figure(b), published.psnr(*b, g.first.network)) for b in tested),
            budget(g),
            g.outcome,
        ]
        for g in groups
    ]
    return Table(["network", "on", *map(shown, tested), "trained with", "outcome"], rows)


def _verdicts(srcnn: Group | None, vdsr: Group | None) -> list[Verdict]:
    either = vdsr or srcnn
    assert either
    keys = [key for key in published.BENCHMARK if either.value(key) is not None]
    bicubic = [(either.value(key, "bicubic_psnr") or 0) - published.BENCHMARK[key]["bicubic"].psnr for key in keys]
    exact = Verdict(
        "Bicubic is the paper's to two decimals: scored as it was scored there",
        all(abs(difference) <= 0.0051 for difference in bicubic) if bicubic else None,
        f"largest difference {max(map(abs, bicubic)):.3f} dB over {len(bicubic)} figures" if bicubic else "none scored",
    )
    budgets = ""
    if vdsr and srcnn and _as_much(vdsr) != _as_much(srcnn):
        budgets = f" (trained with {budget(srcnn)})"
    above = [d for key in keys if (d := difference(vdsr, srcnn, key)) is not None]
    verdicts = [exact, holds(f"VDSR is above SRCNN{budgets}, both ours, at every set and scale", above)]
    for method in ("SRCNN", "VDSR"):
        reached = [(v - published.BENCHMARK[k][method].psnr) for k in keys if vdsr and (v := vdsr.value(k)) is not None]
        # what is published has two decimals
        verdicts.append(holds(f"VDSR reaches the paper's {method} at every set and scale", reached, least=-0.005))
    return verdicts
