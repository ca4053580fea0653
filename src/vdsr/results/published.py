"""The paper's figures as data: what ours are shown beside.

Source: Kim, Lee & Lee, "Accurate Image Super-Resolution Using Very Deep Convolutional Networks", CVPR 2016
(arXiv 1511.04587). PSNR in dB and SSIM on luma; sets are named as ours are.
"""

from typing import NamedTuple

STEPS, BATCH, EPOCHS, PATCH = 9960, 64, 80, 41
PATCHES = STEPS * BATCH  # 637,440 drawn during the whole schedule


class Figures(NamedTuple):
    """PSNR in dB, SSIM, and seconds per image on the authors' machine where they are given."""

    psnr: float
    ssim: float
    seconds: float | None = None


METHODS = ("bicubic", "A+", "RFL", "SelfEx", "SRCNN", "VDSR")

# Table 3, trained on 291 images. Set, scale, then the six methods.
_TABLE_3 = """
set5     2 33.66/0.9299 36.54/0.9544/0.58 36.54/0.9537/0.63 36.49/0.9537/45.78 36.66/0.9542/2.19 37.53/0.9587/0.13
set5     3 30.39/0.8682 32.58/0.9088/0.32 32.43/0.9057/0.49 32.58/0.9093/33.44 32.75/0.9090/2.23 33.66/0.9213/0.13
set5     4 28.42/0.8104 30.28/0.8603/0.24 30.14/0.8548/0.38 30.31/0.8619/29.18 30.48/0.8628/2.19 31.35/0.8838/0.12
set14    2 30.24/0.8688 32.28/0.9056      32.26/0.9040      32.22/0.9034       32.42/0.9063      33.03/0.9124/0.25
set14    3 27.55/0.7742 29.13/0.8188      29.05/0.8164      29.16/0.8196       29.28/0.8209      29.77/0.8314/0.26
set14    4 26.00/0.7027 27.32/0.7491      27.24/0.7451      27.40/0.7518       27.49/0.7503      28.01/0.7674/0.25
b100     2 29.56/0.8431 31.21/0.8863      31.16/0.8840      31.18/0.8855       31.36/0.8879      31.90/0.8960/0.16
b100     3 27.21/0.7385 28.29/0.7835      28.22/0.7806      28.29/0.7840       28.41/0.7863      28.82/0.7976/0.21
b100     4 25.96/0.6675 26.82/0.7087      26.75/0.7054      26.84/0.7106       26.90/0.7101      27.29/0.7251/0.21
urban100 2 26.88/0.8403 29.20/0.8938      29.11/0.8904      29.54/0.8967       29.50/0.8946      30.76/0.9140/0.98
urban100 3 24.46/0.7349 26.03/0.7973      25.86/0.7900      26.44/0.8088       26.24/0.7989      27.14/0.8279/1.08
urban100 4 23.14/0.6577 24.32/0.7183      24.19/0.7096      24.79/0.7374       24.52/0.7221      25.18/0.7524/1.06
"""

BENCHMARK: dict[tuple[str, float], dict[str, Figures]] = {
    (name, float(scale)): {
        method: Figures(*map(float, cell.split("/"))) for method, cell in zip(METHODS, cells, strict=True)
    }
    for name, scale, *cells in (line.split() for line in _TABLE_3.split("\n") if line)
}

SETS = tuple(dict.fromkeys(name for name, _ in BENCHMARK))

# Table 1(a): Set5 ×2 at γ₀ = 0.1, trained on 91 images. {residual: {epoch: PSNR}}
RESIDUAL: dict[bool, dict[int, float]] = {
    True: {10: 36.90, 20: 36.64, 40: 37.12, 80: 37.05},
    False: {10: 27.42, 20: 19.59, 40: 31.38, 80: 35.66},
}
RESIDUAL_LR = 0.1
RESIDUAL_SCORED = ("set5", 2.0)

# Table 2: Set5, trained on 91 images. {scales trained on: {scale tested at: PSNR}}
SCALE_SETS: dict[tuple[float, ...], dict[float, float]] = {
    (2,): {2: 37.10, 3: 30.42, 4: 28.43},
    (3,): {2: 30.05, 3: 32.89, 4: 28.73},
    (4,): {2: 28.13, 3: 30.50, 4: 30.84},
    (2, 3): {2: 37.09, 3: 33.22, 4: 28.70},
    (2, 4): {2: 37.03, 3: 31.20, 4: 30.86},
    (3, 4): {2: 32.43, 3: 33.24, 4: 30.94},
    (2, 3, 4): {2: 37.06, 3: 33.27, 4: 30.95},
}

# Figure 3: what D = 20 gains over D = 5 on Set5, at each of ×2, ×3, ×4; trained on 91 images.
DEPTH_GAIN = (0.3, 0.4)


def psnr(name: str, scale: float, method: str) -> float | None:
    """Table 3's PSNR in dB of a method on a set at a scale; None where the paper has none."""
    figures = BENCHMARK.get((name, scale))
    return figures[method].psnr if figures else None
