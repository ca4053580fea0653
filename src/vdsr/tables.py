"""Tables of PSNR and SSIM, for the terminal and as CSV."""

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich.table import Table

from vdsr.benchmark import Row
from vdsr.records import Record


def benchmark(record: Record) -> Table:
    """A run's final scores beside bicubic's."""
    rows = [
        Row(name, "", float(scale.removeprefix("x")), **figures)
        for name, scales in record["metrics"].items()
        for scale, figures in scales.items()
    ]
    steps = f"{record['steps']} steps in {record['seconds']:.0f} s"
    return scores(rows, f"{record['name']}: {steps}, {record['network']['parameters']:,} weights")


def scores(rows: Sequence[Row], title: str, images: bool = False) -> Table:
    """PSNR in dB (2 decimals) and SSIM (4) of the network, of bicubic, and the gain; a row each."""
    table = Table(title=title, title_justify="left")
    table.add_column("set")
    if images:
        table.add_column("image", overflow="fold")  # never cut short: names are to be looked up
    table.add_column("scale", justify="right")
    for column in ("PSNR", "SSIM", "bicubic PSNR", "SSIM", "gain (dB)"):
        table.add_column(column, justify="right")
    for row in rows:
        names = [row.set, row.image] if images else [row.set]
        table.add_row(
            *names,
            f"×{row.scale:g}",
            f"{row.psnr:.2f}",
            f"{row.ssim:.4f}",
            f"{row.bicubic_psnr:.2f}",
            f"{row.bicubic_ssim:.4f}",
            f"{row.psnr - row.bicubic_psnr:+.2f}",
        )
    return table


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line a row, all digits, written to a temporary name and renamed."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
