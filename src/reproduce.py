"""Run every experiment of the paper: `python src/reproduce.py --help`."""

from omegaconf import DictConfig

from vdsr.cli import command


@command("reproduce")
def main(cfg: DictConfig) -> None:
    from vdsr.reproduction import reproduce

    reproduce(cfg)


if __name__ == "__main__":
    main()
