"""A page to drop pictures on, at 127.0.0.1: `python src/demo.py --help`."""

from omegaconf import DictConfig

from vdsr.cli import command


@command("demo", verbatim=("weights",))
def main(cfg: DictConfig) -> None:
    from vdsr.demo import serve

    serve(str(cfg.weights), str(cfg.memory), cfg.port)


if __name__ == "__main__":
    main()
