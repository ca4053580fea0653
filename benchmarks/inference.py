"""A whole image through the network: time, exactness and memory."""

import subprocess
import sys
from pathlib import Path

import torch
from measure import in_turns, peak_memory
from torch import Tensor
from training import Plain

from vdsr.metrics import psnr, psnr_ssim
from vdsr.net import VDSR, channels_last
from vdsr.tiles import upscale

DEPTH = 20
MEGAPIXELS_12 = (3000, 4000)


def _networks() -> tuple[Plain, VDSR]:
    torch.manual_seed(0)
    plain, ours = Plain(DEPTH), VDSR(DEPTH)
    with torch.no_grad():
        for parameter in plain.net.parameters():
            parameter.mul_(0.5)  # outputs of the size of a residual, as a trained network has them
    ours.body.load_state_dict(plain.net.state_dict())
    channels_last(ours)
    return plain, ours.eval()


def picture(height: int, width: int) -> Tensor:
    """A smooth picture with edges, (1, 1, H, W) in [0.1, 0.9]."""
    rows, columns = torch.arange(height)[:, None] / 37, torch.arange(width)[None] / 53
    return (0.5 + 0.2 * torch.sin(rows * columns / 9) + 0.2 * torch.sign(torch.sin(rows + columns)))[None, None]


def compare(rounds: int) -> dict[str, float]:
    """512 × 512: how many times as fast as the plain eager call, and what bf16 costs in PSNR (dB)."""
    plain, ours = _networks()
    image = picture(512, 512)

    def bf16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return upscale(ours, image)

    with torch.inference_mode():
        seconds = in_turns(
            {"plain": lambda: plain.forward(image), "fp32": lambda: upscale(ours, image), "bf16": bf16}, rounds
        )
        exact, rounded = upscale(ours, image), bf16()
        noisy = (exact + 0.02 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
        target = (noisy * 255).round() / 255
        loss = float(psnr(exact, target, 3) - psnr(rounded, target, 3))
    return {
        "fp32 speed-up": seconds["plain"] / seconds["fp32"],
        "bf16 speed-up": seconds["plain"] / seconds["bf16"],
        "bf16 PSNR loss": loss,
        "seconds": seconds["fp32"],
    }


def tiles_against_whole(height: int = 1000, width: int = 1200) -> float:
    """The largest difference, in luma of [0, 1], that tiles make where both fit into memory."""
    _, ours = _networks()
    image = picture(height, width)
    with torch.inference_mode():
        return float((upscale(ours, image) - ours(image)).abs().max())


def memory_of_12_megapixels() -> float:
    """Peak resident memory in GB of a process of its own that upscales 12 megapixels in fp32."""
    script = f"import inference; inference._twelve_megapixels{MEGAPIXELS_12}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return float(done.stdout) / 1e9


def _twelve_megapixels(height: int, width: int) -> None:
    _, ours = _networks()
    upscale(ours, picture(height, width))
    print(peak_memory())


def validation(rounds: int) -> float:
    """The share of a validation that scoring takes beside the network, for one 510 × 510 image at ×3."""
    _, ours = _networks()
    image = picture(510, 510)
    with torch.inference_mode():
        seconds = in_turns(
            {"network": lambda: upscale(ours, image), "score": lambda: psnr_ssim(image, image, 3)}, rounds
        )
    return seconds["score"] / (seconds["score"] + seconds["network"])
