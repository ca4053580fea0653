"""RESULTS.md and a page to look into, from the run records: `python src/report.py --help`."""

from omegaconf import DictConfig

from vdsr.cli import command


@command("report")
def main(cfg: DictConfig) -> None:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from vdsr.results import live, page, report, runs

    records = Path(cfg.records)
    found, damaged = runs.read_each(records)
    weights = cfg.vdsr or page.best_weights(found)

    def compared(folder: Path) -> page.Pictures | None:
        if not weights or not cfg.sets:
            return None
        from vdsr.results import comparisons  # torch, which the report itself does without

        return comparisons.draw_all(Path(weights), Path(cfg.paths.data), cfg.sets, folder)

    if cfg.serve:
        with TemporaryDirectory() as folder:
            live.serve(records, cfg.port, compared(Path(folder)), Path(folder))
        return
    if not damaged:
        report.write(records, Path(cfg.out), Path(cfg.pictures))
    if cfg.page is not None and (found or not damaged):
        page.write(Path(cfg.page), found, damaged, compared(Path(cfg.page).parent / page.PICTURES))
    if cfg.cards is not None:
        from vdsr.results import cards

        cards.write(Path(cfg.cards), found)
    if cfg.crops is not None:
        from vdsr.results import crops

        crops.draw_all(Path(cfg.crops), Path(cfg.paths.data), {"SRCNN": cfg.srcnn, "VDSR": cfg.vdsr})
    runs.refuse(damaged, records)  # last: they hide nothing else


if __name__ == "__main__":
    main()
