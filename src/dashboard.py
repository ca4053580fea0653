"""The W&B workspace of a project, created or brought up to date: `python src/dashboard.py --help`."""

from omegaconf import DictConfig

from vdsr.cli import command


@command("dashboard")
def main(cfg: DictConfig) -> None:
    from pathlib import Path

    from vdsr import dashboard, records, tracking

    if cfg.dry_run:
        path = Path(cfg.out)
        made = dashboard.workspace(cfg.project, cfg.entity or "entity", cfg.sets)
        records.write_json(path, dashboard.specification(made))
        print(f"dashboard of {cfg.project}, not saved in W&B: {path}")
        return
    made = dashboard.workspace(cfg.project, cfg.entity or tracking.entity(), cfg.sets)
    print(f"dashboard: {dashboard.save(made)}")


if __name__ == "__main__":
    main()
