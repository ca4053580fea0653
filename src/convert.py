"""Other people's VDSR weights into ours, without executing anything: `python src/convert.py --help`."""

from omegaconf import DictConfig

from vdsr.cli import command


@command("convert")
def main(cfg: DictConfig) -> None:
    from pathlib import Path

    from vdsr import foreign, weights
    from vdsr.errors import InputError

    source, out = Path(cfg.source), Path(cfg.out)
    if out.suffix != ".safetensors" or out.resolve() == source.resolve():
        raise InputError(f"out={out}: give a .safetensors file, another one than the source")
    if cfg.residual not in (True, False):
        raise InputError(f"residual={cfg.residual}: there are true and false")
    net = foreign.load(source, cfg.peak, cfg.residual)
    out.parent.mkdir(parents=True, exist_ok=True)
    weights.save(net, out, source=source.name, peak=cfg.peak)
    print(f"{source}: D = {net.depth}, {net.width} filters → {out}")
    print(f"score it: python src/evaluate.py weights={out}")


if __name__ == "__main__":
    main()
