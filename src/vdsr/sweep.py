"""After a sweep: one table of all its points, and the picture of it, in the sweep's folder."""

import csv
import logging
import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from vdsr.errors import InputError
from vdsr.points import one_point

log = logging.getLogger(__name__)


class SweepReport(Callback):
    """Runs where the sweep was started, once its last point has ended; exit status 1 if any failed.

    Where each point is a process of its own, every one of them renews the table, and the last leaves it whole.
    """

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
            return
        folder = Path(config.hydra.sweep.dir)
        try:
            failed = report(folder)
        except InputError as error:
            sys.exit(f"error: {error}")
        if failed and not one_point():
            sys.exit(f"error: {failed} of the sweep's points did not finish; see {folder / 'sweep.csv'}")


def record_failure(cfg: DictConfig, complaint: str) -> None:
    """A point that failed before it had a record gets one, so that the sweep's table shows it."""
    from vdsr import records

    path = Path(HydraConfig.get().runtime.output_dir) / records.FILE
    if not path.exists():
        config = OmegaConf.to_container(cfg, resolve=True)
        overrides = list(HydraConfig.get().overrides.task)
        record = {"format": records.FORMAT, "name": cfg.name, "overrides": overrides, "config": config}
        empty = {"curve": [], "validations": [], "seconds": 0.0, "steps": 0}
        records.write_json(path, {**record, **empty, "status": "failed", "error": complaint})


def report(folder: Path) -> int:
    """Write `sweep.csv` and `sweep.png` for the records below `folder`, print the table; how many points failed.

    Raises InputError when there is no record or a damaged one.
    """
    from rich.console import Console  # only once there is something to show
    from rich.table import Table

    from vdsr import records

    found = records.read_all(folder)
    if not found:
        raise InputError(f"{folder}: no run left a record")
    keys = records.swept(found)
    found.sort(key=lambda record: [records.order(records.setting(record, key)) for key in keys])
    benchmarks = sorted({(name, scale) for r in found for name, s in r.get("metrics", {}).items() for scale in s})
    header = [
        *keys,
        "status",
        *(f"{name} {scale.replace('x', '×')}" for name, scale in benchmarks),
        "gain",
        "seconds",
    ]
    rows = [
        [*(str(records.setting(r, key)) for key in keys), r["status"]]
        + [_psnr(r, name, scale) for name, scale in benchmarks]
        + [f"{r['gain']:+.2f}" if r.get("gain") is not None else "", f"{r['seconds']:.0f}"]
        for r in found
    ]
    table = Table(title=f"{found[0]['name']}: PSNR in dB, gain over bicubic", title_justify="left")
    for name in header:
        table.add_column(name.split(".")[-1], overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    temporary = folder / f"sweep.csv.{os.getpid()}.tmp"
    with temporary.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    temporary.replace(folder / "sweep.csv")
    _draw(found, keys, folder / "sweep.png")
    log.info("table: %s, picture: %s", folder / "sweep.csv", folder / "sweep.png")
    for record in found:
        if record["status"] != "finished":
            log.warning(
                "%s: %s: %s",
                ", ".join(record["overrides"]),
                record["status"],
                record.get("error", "not ended"),
            )
    return sum(record["status"] != "finished" for record in found)


def _psnr(record: dict[str, Any], name: str, scale: str) -> str:
    figures = record.get("metrics", {}).get(name, {}).get(scale)
    return f"{figures['psnr']:.2f}" if figures and figures["psnr"] is not None else ""


def _draw(found: list[dict[str, Any]], keys: list[str], path: Path) -> None:
    """Gain over bicubic at each scale, point by point."""
    from vdsr import plots, records

    figure = plots.figure(4.2, width=1.6 + 1.1 * max(4, len(found)))
    axes = figure.subplots()
    labels = ["\n".join(f"{key.split('.')[-1]} {records.setting(r, key)}" for key in keys) for r in found]
    benchmarks = sorted({(name, scale) for r in found for name, s in r.get("metrics", {}).items() for scale in s})
    for number, (name, scale) in enumerate(benchmarks):
        points = [
            (i, figures["psnr"] - figures["bicubic_psnr"])
            for i, r in enumerate(found)
            if (figures := r.get("metrics", {}).get(name, {}).get(scale))
            and None not in (figures["psnr"], figures["bicubic_psnr"])
        ]
        label = f"{name} {scale.replace('x', '×')}"
        axes.plot([i for i, _ in points], [gain for _, gain in points], label=label, **plots.style(number))
    axes.axhline(0, color=plots.GREY, linewidth=1)
    plots.plain(axes, "", "PSNR above bicubic (dB)", found[0]["name"])
    axes.set_xticks(range(len(found)), labels)
    if benchmarks:
        axes.legend(fontsize=8, frameon=False)
    plots.save(figure, path)
