"""Scores of a trained network on prepared benchmarks, from the configuration of `src/evaluate.py`."""

import logging
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from vdsr import benchmark, hardware, net, records, tables, weights
from vdsr.callbacks.pictures import draw
from vdsr.data import Picture, load_pictures, parse_scales
from vdsr.errors import InputError
from vdsr.metrics import check_size
from vdsr.sample import ensure_sample
from vdsr.shards import ShardSet

log = logging.getLogger(__name__)

BENCHMARKS = ("set5", "set14", "b100", "urban100")


def evaluate(cfg: DictConfig) -> list[benchmark.Row]:
    """Score a network on prepared benchmarks, print the table and write what was asked for.

    Returns the rows that were printed. Raises InputError for missing weights, sets or scales.
    """
    model = cfg.get("model")  # without model= the group is not in the configuration
    if (cfg.weights is None) == (model is None):
        raise InputError("give weights=NAME or FILE, or model=bicubic, and not both")
    if model and model._target_ != "vdsr.net.Bicubic":
        raise InputError("an untrained network has no scores: give weights=FILE, or model=bicubic")
    if not isinstance(cfg.pictures, int):
        raise InputError(f"pictures={cfg.pictures}: give a whole number")
    hardware.exact()
    device = hardware.device(cfg.accelerator)
    network = net.Bicubic() if model else weights.load(weights.find(cfg.weights))
    network = net.channels_last(network.to(device).eval())
    scales = parse_scales(cfg.scales, "scales")
    sets = [ShardSet.open(folder) for folder in _benchmarks(cfg)]
    pictures = [picture for shards in sets for picture in load_pictures(shards)]
    for picture in pictures:
        for scale in scales:
            check_size(picture.sample.height, picture.sample.width, scale, picture.sample.key)
    console = Console(stderr=True)
    with Progress(transient=True, console=console, disable=not console.is_terminal) as bar:
        bar_id = bar.add_task("scoring", total=len(pictures) * len(scales))
        rows = benchmark.run(network, pictures, scales, device, lambda: bar.advance(bar_id))
    shown = rows if cfg.per_image else benchmark.means(rows)
    name = cfg.weights or type(network).__name__
    Console().print(tables.scores(shown, str(name), images=cfg.per_image))
    if cfg.out is not None:
        _write_scores(Path(cfg.out), rows, network, pictures, scales, device, cfg)
    return shown


def _benchmarks(cfg: DictConfig) -> list[Path]:
    root = Path(cfg.paths.data)
    if cfg.sets is not None:
        names = [cfg.sets] if isinstance(cfg.sets, str) else list(cfg.sets)
        if not names:
            raise InputError("sets is empty: name at least one prepared folder, such as [set5]")
        ensure_sample(root, [root / name for name in names])
        return [root / name for name in names]
    found = [root / name for name in BENCHMARKS if (root / name).is_dir()]
    if not found:
        raise InputError(
            f"{root}: no benchmark is prepared: python data_prep/prepare.py dataset=set5, or sets=[sample_val]"
        )
    return found


def _write_scores(
    out: Path,
    rows: list[benchmark.Row],
    network: torch.nn.Module,
    pictures: list[Picture],
    scales: tuple[float, ...],
    device: torch.device,
    cfg: DictConfig,
) -> None:
    """`scores.csv` with a row an image and scale, `scores.json` with the means too, and pictures."""
    out.mkdir(parents=True, exist_ok=True)
    tables.write_csv(out / "scores.csv", rows)
    content = {
        "network": network.spec(),  # type: ignore[operator]
        "weights": cfg.weights,
        "means": [asdict(row) for row in benchmark.means(rows)],
        "images": [asdict(row) for row in rows],
    }
    records.write_json(out / "scores.json", content | records.provenance() | {"hardware": hardware.describe()})
    drawn: Counter[str] = Counter()
    for picture in pictures:
        drawn[picture.set] += 1
        if drawn[picture.set] <= cfg.pictures:
            draw(network, picture, scales, device, out / "pictures" / f"{picture.sample.key}.png")
    log.info("written: %s", out)
