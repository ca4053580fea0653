"""How near to the hardware: `make bench` (about 15 minutes on two cores), `make bench-quick` (under two).

Ratios of things measured in turns in one process, as medians; the machine should be otherwise idle. The last lines
give each figure with its bound, and `ok` or `short`. `out=` keeps all of it as JSON with hardware and versions.
"""

import argparse
import tempfile
import time
from pathlib import Path

import films
import inference
import measure
import processes
import torch
import training
from rich.console import Console
from rich.table import Table

from vdsr import hardware, kernels, records
from vdsr.data import SuperResolutionData
from vdsr.net import VDSR

Figure = tuple[str, float, str, float]  # name, value, ">=" or "<=", bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no scaling tables")
    parser.add_argument("--out", type=Path, help="write everything there as JSON")
    parser.add_argument("--train", help="prepared training set (default: generated images like the 291 in size)")
    options = parser.parse_args()
    rounds = 3 if options.quick else 7
    began = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        figures, details = measure_all(folder, options.train, rounds, options.quick)
    if options.out:
        content = {"figures": figures, "details": details, "hardware": hardware.describe()}
        records.write_json(options.out, content | records.provenance() | {"date": time.strftime("%Y-%m-%d")})
    print(f"\n{time.time() - began:.0f} s")
    for name, value, sense, bound in figures:
        good = value >= bound if sense == ">=" else value <= bound
        print(f"{name:<58} {value:>10.3f}  {sense} {bound:<8g} {'ok' if good else 'short'}")


def measure_all(folder: Path, train: str | None, rounds: int, quick: bool) -> tuple[list[Figure], dict[str, object]]:
    say = Console(stderr=True).print
    figures: list[Figure] = []
    details: dict[str, object] = {}

    say("preparing images")
    source = processes.images(folder / "images", 60 if quick else 291)
    seconds = processes.prepare(folder, source, "train")
    figures.append(("preparing 291 images (s)", seconds * 291 / (60 if quick else 291), "<=", 30))
    train = str(Path(train).resolve()) if train else str(folder / "data/train")
    data = {
        size: SuperResolutionData(train, [train], test=None, batch_size=size, val_scales=[3]) for size in (16, 64, 256)
    }

    say("matrix products")
    peaks = {name: measure.peak(dtype, rounds) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    details["peak GFLOP/s"] = {name: value / 1e9 for name, value in peaks.items()}

    bf16 = hardware.precision("auto") == "bf16-mixed"
    for depth, size, bound in ((20, 64, 0.95), (5, 16, 0.85)):
        say(f"training step, D = {depth}, batch {size}")
        step = training.steps_beside_each_other(depth, size, data[size], rounds)
        details[f"seconds per step, D = {depth}, batch {size}"] = step
        work = training.flops(depth) * size
        details[f"share of the bf16 peak, D = {depth}, batch {size}"] = {
            name: work / s / peaks["bf16"] for name, s in step.items()
        }
        if depth == 20:
            if bf16:
                figures.append(
                    ("Trainer.fit against the plain fp32 step, D = 20", step["plain"] / step["fit"], ">=", 2.0)
                )
            figures.append(
                ("bare step's share of the bf16 peak, D = 20", work / step["bare"] / peaks["bf16"], ">=", 0.75)
            )
            if torch.cpu._is_amx_tile_supported():
                share = training.share_of_peak_without_amx(depth, size, rounds)
                figures.append(("PyTorch's step's share with AVX512-BF16 alone, AMX off", share, ">=", 0.75))
            if not kernels.missing(VDSR(depth)):
                faster, made = step["PyTorch's"] / step["bare"], kernels.instructions()
                least = 2.0 if made == "AMX" else 1.15
                figures.append((f"kernels for {made} against PyTorch's in bf16, D = 20", faster, ">=", least))
        figures.append(
            (f"Trainer.fit against the bare step, D = {depth}, batch {size}", step["bare"] / step["fit"], ">=", bound)
        )
        if depth == 20:
            load = training.loading(data[size], 10 * rounds)
            figures.append(
                ("loading and degradation in a step (%)", 100 * load["loading and degradation"] / step["bare"], "<=", 2)
            )
            figures.append(("loading alone (crops/s)", size / load["loading"], ">=", 30_000))

    say("inference")
    found = inference.compare(rounds)
    details["512×512"] = found
    figures.append(("512×512 against the plain call, fp32", found["fp32 speed-up"], ">=", 1.45))
    if bf16:
        figures.append(("512×512 against the plain call, bf16", found["bf16 speed-up"], ">=", 2.7))
        figures.append(("what bf16 costs in PSNR (dB)", found["bf16 PSNR loss"], "<=", 0.01))
    figures.append(("what tiles change (luma of 1)", inference.tiles_against_whole(), "<=", 1e-5))
    figures.append(("share of scoring in a validation", inference.validation(rounds), "<=", 0.2))
    if not quick:
        say("12 megapixels")
        figures.append(("12 megapixels, peak memory (GB)", inference.memory_of_12_megapixels(), "<=", 1.5))

    say("video")
    film = films.frames_per_second(folder, 6 if quick else 24, 3)
    details["frames/s, 320×240 → 640×480"] = film
    faster = film["upscale"] / film["plain"]
    figures.append(("video 320×240 → 640×480 against the plain loop", faster, ">=", 2.5 if bf16 else 1.2))

    say("start-up")
    figures.append(("--help (s of CPU)", processes.help_seconds(folder), "<=", 1.0))
    figures.append(("first step (s of CPU)", processes.first_step_seconds(folder), "<=", 8.0))
    if quick:
        return figures, details

    say("ranks")
    alone, both = (processes.patches_per_second(folder, ranks, 24) for ranks in (1, 2))
    details["patches/s on 1 and 2 cores"] = [alone, both]
    figures.append(("two ranks on a core each against twice one", both / (2 * alone), ">=", 0.9))
    say("scaling")
    details["patches/s by depth, batch 64"] = {d: _patches(d, 64) for d in (5, 8, 10, 15, 20)}
    details["patches/s by batch, D = 10"] = {size: _patches(10, size) for size in (16, 32, 64, 128, 256)}
    say("streams")
    streams = {count: processes.stream(folder, count) for count in (291, 10_000)}
    details["patches/s from a stream, by images"] = {count: rate for count, (rate, _) in streams.items()}
    details["peak memory of a stream (MB), by images"] = {count: memory for count, (_, memory) in streams.items()}
    figures.append(("memory of a stream, 10,000 images against 291", streams[10_000][1] / streams[291][1], "<=", 1.1))
    for name in [name for name in details if "by" in name.split()]:
        Console().print(_table(name, details[name]))  # type: ignore[arg-type]
    return figures, details


def _patches(depth: int, size: int) -> float:
    bare, fixed = training.Bare(depth), training.batch(size)
    return size / measure.in_turns({"bare": lambda: bare.step(fixed)}, 3)["bare"]


def _table(title: str, values: dict[int, float]) -> Table:
    table = Table(title=title, title_justify="left")
    for key in values:
        table.add_column(str(key), justify="right")
    table.add_row(*(f"{value:.0f}" for value in values.values()))
    return table


if __name__ == "__main__":
    main()
