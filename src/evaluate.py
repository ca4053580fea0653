"""Score weights, a checkpoint or bicubic as the paper does: `python src/evaluate.py --help`."""

from omegaconf import DictConfig

from vdsr.cli import command


@command("evaluate")
def main(cfg: DictConfig) -> None:
    from vdsr.evaluation import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    main()
