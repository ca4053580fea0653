"""The page of `src/demo.py`: a picture in, bicubic and network under a slider, PSNR, the file to keep."""

import functools
import logging
import os
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vdsr import hardware, photos, weights
from vdsr.colour import luma
from vdsr.errors import InputError
from vdsr.metrics import psnr
from vdsr.net import Bicubic
from vdsr.pixels import Pixels
from vdsr.upscaler import Upscaler, parse_memory
from vdsr.upscaling import Job, Settings, picture

HOST = "127.0.0.1"
LARGEST_UPLOAD = "100mb"


def serve(network: str, memory: str, port: int) -> None:
    """Serve the page to this machine until Ctrl-C. Raises InputError when it cannot."""
    if not isinstance(port, int) or not 0 < port < 65536:
        raise InputError(f"port={port}: give a number from 1 to 65535")
    offered = list(dict.fromkeys([network, *weights.names()]))
    bound = parse_memory(memory)
    Upscaler.load(network)  # what cannot be read is said now, not on the page
    with tempfile.TemporaryDirectory(prefix="vdsr-demo-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio calls itself on starting
        page, looks = _page(offered, bound, Path(folder))
        try:
            page.launch(
                server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
                max_file_size=LARGEST_UPLOAD, footer_links=[], **looks,
            )  # fmt: skip
        except OSError:
            raise InputError(f"port={port} is taken: give another, such as port={port + 1}") from None
        print(f"http://{HOST}:{port} (Ctrl-C ends it)", flush=True)  # noqa: T201
        page.block_thread()


def compare(
    path: Path, scale: float, upscaler: Upscaler, original: Path | None, folder: Path
) -> tuple[Path, Path, str]:
    """Upscale a picture by bicubic interpolation and by the network; files of both, and a line about them.

    With the original, the line has both PSNRs (luma, the benchmarks' way). Raises InputError.
    """
    settings = Settings(Fraction(str(scale)), f"x{scale:g}", "png", 95, None, True)
    plain, sharp = folder / f"{path.stem}_bicubic.png", folder / f"{path.stem}_{settings.name}.png"
    for target, by in ((plain, Upscaler(Bicubic())), (sharp, upscaler)):
        with path.open("rb") as file:
            size = picture(file, Job(Path(path.name), target), settings, by)
    if original is None:
        return plain, sharp, size
    with original.open("rb") as file:
        hr = _luma(photos.read(file, original.name).pixels)
    found = [_luma_of(target) for target in (plain, sharp)]
    height, width = (min(a, b) for a, b in zip(hr.shape[2:], found[0].shape[2:], strict=True))
    spare = max(abs(a - b) for a, b in zip(hr.shape[2:], found[0].shape[2:], strict=True))
    if spare >= scale:
        raise InputError(f"{original.name} is {hr.shape[3]}×{hr.shape[2]}, the result {size}: not its original")
    scores = [float(psnr(sr[..., :height, :width], hr[..., :height, :width], scale)) for sr in found]
    return plain, sharp, f"{size} · PSNR: bicubic {scores[0]:.2f} dB, network {scores[1]:.2f} dB"


def _luma_of(path: Path) -> Tensor:
    with Image.open(path) as image:
        return _luma(Pixels(image))


def _luma(pixels: Pixels) -> Tensor:
    """(1, 1, H, W) of 8-bit values in [0, 1]."""
    whole = pixels.read(slice(0, pixels.height), slice(0, pixels.width))
    array: NDArray[np.uint8] = np.round(whole.astype(np.float64) / pixels.peak * 255).astype(np.uint8)
    grey = luma(array[..., :3]) if pixels.channels > 2 else array[..., 0]
    return torch.from_numpy(grey.astype(np.float64))[None, None] / 255


def _page(offered: list[str], memory: int, folder: Path) -> tuple[Any, dict[str, Any]]:
    try:
        import gradio
    except ImportError:
        raise InputError("the demo needs gradio: pip install -e '.[demo]'") from None

    @functools.lru_cache(maxsize=2)
    def upscaler(name: str) -> Upscaler:
        return Upscaler.load(name, memory=str(memory + hardware.resident()))

    def run(path: str | None, scale: float, name: str, original: str | None) -> tuple[Any, Any, str]:
        if path is None:
            raise gradio.Error("Drop a picture first.")
        try:
            kept = Path(tempfile.mkdtemp(dir=folder))
            found = compare(Path(path), scale, upscaler(name), Path(original) if original else None, kept)
        except InputError as error:
            raise gradio.Error(str(error)) from None
        plain, sharp, line = found
        return (str(plain), str(sharp)), gradio.DownloadButton(value=str(sharp), interactive=True), line

    with gradio.Blocks(title="vdsr", analytics_enabled=False) as page:
        gradio.Markdown("# VDSR: bicubic left of the line, the network right of it")
        with gradio.Row():
            picture_in = gradio.File(label="Picture", file_types=["image"], elem_id="picture", height=120)
            original = gradio.File(
                label="Original, if you have it", file_types=["image"], elem_id="original", height=120
            )
        with gradio.Row():
            scale = gradio.Slider(1.5, 4, value=2, step=0.5, label="Scale", elem_id="scale")
            network = gradio.Dropdown(offered, value=offered[0], label="Network", elem_id="network")
            start = gradio.Button("Upscale", variant="primary", elem_id="start")
        slider = gradio.ImageSlider(type="filepath", format="png", label="bicubic | network", elem_id="slider")
        line = gradio.Markdown(elem_id="line")
        keep = gradio.DownloadButton("Download", interactive=False, elem_id="download")
        start.click(run, [picture_in, scale, network, original], [slider, keep, line])
    # fonts of this machine, or the page would ask the internet for some
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return page, {"theme": theme}
