"""RESULTS.md and its pictures from the run records: `python src/report.py --help`."""

from omegaconf import DictConfig

from vdsr.cli import command


@command("report")
def main(cfg: DictConfig) -> None:
    from pathlib import Path

    from vdsr.results import report

    report.write(Path(cfg.records), Path(cfg.out), Path(cfg.pictures))
    if cfg.crops is not None:
        from vdsr.results import crops  # torch, which the report itself does without

        crops.draw_all(Path(cfg.crops), Path(cfg.paths.data), {"SRCNN": cfg.srcnn, "VDSR": cfg.vdsr})


if __name__ == "__main__":
    main()
