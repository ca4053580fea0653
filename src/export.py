"""Write a network as ONNX or torch.export, for other programs: `python src/export.py --help`."""

from omegaconf import DictConfig

from vdsr.cli import command


@command("export", verbatim=("weights", "output"))
def main(cfg: DictConfig) -> None:
    from pathlib import Path

    from vdsr import portable, weights
    from vdsr.errors import InputError

    path = weights.find(cfg.weights)
    output = Path(cfg.output or path.stem + portable.SUFFIXES.get(cfg.format, ""))
    if output.exists() and not cfg.overwrite:
        raise InputError(f"{output}: is there already; set overwrite=true to replace it")
    difference = portable.export(weights.load(path), cfg.format, output)
    print(f"{output}: differs from the network by {difference:.1g} of 1 at most, at three sizes")


if __name__ == "__main__":
    main()
