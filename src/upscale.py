"""Make pictures and videos larger and sharper: `python src/upscale.py --help`."""

from omegaconf import DictConfig

from vdsr.cli import command


@command("upscale", verbatim=("input", "output", "weights"))
def main(cfg: DictConfig) -> None:
    from vdsr.upscaling import upscale

    upscale(cfg)


if __name__ == "__main__":
    main()
