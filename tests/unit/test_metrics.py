import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from vdsr.errors import InputError
from vdsr.metrics import BenchmarkScore, psnr_ssim, quantise

TORCHMETRICS = 1e-5  # dB; it takes its logarithms in float32


def pair(seed=0, size=(40, 52), error=8.0):
    """A smooth 8-bit original in [16, 235] and a distorted one in [0, 1]."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.random(size), 2)
    hr = np.round(16 + 219 * (smooth - smooth.min()) / np.ptp(smooth))
    sr = hr + rng.normal(0, error, size)
    return tensor(sr), tensor(hr)


def tensor(levels):
    return torch.from_numpy(np.asarray(levels, dtype=np.float64) / 255)[None, None]


def levels(image, shave):
    array = np.round(np.clip(image[0, 0].numpy() * 255, 16, 235))
    return array[shave:-shave, shave:-shave]


def psnr_by_hand(sr, hr, shave):
    return 10 * np.log10(255**2 / np.mean((levels(sr, shave) - levels(hr, shave)) ** 2))


def ssim_by_hand(sr, hr, shave):
    """Wang et al. 2004, eq. 13, with an 11 × 11 Gaussian over the pixels whose window is inside."""
    x, y = levels(sr, shave), levels(hr, shave)

    def mean(image):
        return gaussian_filter(image, 1.5, radius=5)[5:-5, 5:-5]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, cxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    ssim = (2 * mx * my + c1) * (2 * cxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return ssim.mean()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("error", [0.7, 8, 40])
def test_psnr_and_ssim_by_hand(scale, error):
    sr, hr = pair(scale, error=error)
    psnr, ssim = psnr_ssim(sr, hr, scale)
    assert float(psnr) == pytest.approx(psnr_by_hand(sr, hr, scale), abs=TORCHMETRICS)
    assert float(ssim) == pytest.approx(ssim_by_hand(sr, hr, scale), abs=1e-6)
    assert psnr.dtype == ssim.dtype == torch.float64


def test_psnr_of_one_wrong_pixel():
    hr = tensor(np.full((30, 30), 100))
    sr = hr.clone()
    sr[0, 0, 15, 15] += 26 / 255
    assert float(psnr_ssim(sr, hr, 2)[0]) == pytest.approx(10 * np.log10(255**2 / (26**2 / 26**2)), abs=TORCHMETRICS)


def test_a_fractional_scale_shaves_the_pixels_it_touches():
    sr, hr = pair()
    assert float(psnr_ssim(sr, hr, 2.5)[0]) == pytest.approx(psnr_by_hand(sr, hr, 3), abs=TORCHMETRICS)


def test_the_border_does_not_count():
    sr, hr = pair()
    spoiled = sr.clone()
    for edge in (np.s_[..., :3, :], np.s_[..., -3:, :], np.s_[..., :3], np.s_[..., -3:]):
        spoiled[edge] = 0
    assert psnr_ssim(spoiled, hr, 3) == psnr_ssim(sr, hr, 3)
    assert psnr_ssim(spoiled, hr, 2)[0] < psnr_ssim(sr, hr, 2)[0] - 1


def test_output_beyond_video_range_is_clipped():
    hr = tensor(np.concatenate([np.full((30, 15), 16), np.full((30, 15), 235)], axis=1))
    sr = hr + torch.where(hr < 0.5, -0.2, 0.2)
    assert float(psnr_ssim(sr, hr, 2)[0]) == float("inf")


def test_output_is_rounded_to_grey_levels():
    hr = tensor(np.full((30, 30), 100))
    assert float(psnr_ssim(hr + 0.49 / 255, hr, 2)[0]) == float("inf")
    assert float(psnr_ssim(hr + 0.51 / 255, hr, 2)[0]) == pytest.approx(20 * np.log10(255), abs=TORCHMETRICS)


def test_quantise():
    given = torch.tensor([-1.0, 0.0, 100.4 / 255, 100.6 / 255, 0.99, 2.0])
    assert quantise(given).tolist() == [16, 16, 100, 101, 235, 235]


@pytest.mark.parametrize(("size", "scale"), [((14, 60), 2), ((60, 18), 4), ((16, 16), 2.5)])
def test_an_image_too_small_is_refused(size, scale):
    with pytest.raises(InputError, match="is too small to be scored at ×"):
        psnr_ssim(*pair(size=size), scale)
    psnr_ssim(*pair(size=(20, 20)), scale)


def test_a_set_scores_the_mean_of_its_images():
    pairs = [pair(0, error=2), pair(1, (30, 33), error=30), pair(2, error=9)]
    score = BenchmarkScore()
    for sr, hr in pairs:
        score.update(sr, hr, 3)
    single = [psnr_ssim(sr, hr, 3) for sr, hr in pairs]
    psnr, ssim = score.compute()
    assert psnr == pytest.approx(np.mean([float(p) for p, _ in single]), abs=1e-12)
    assert ssim == pytest.approx(np.mean([float(s) for _, s in single]), abs=1e-12)
    errors = np.concatenate([((levels(sr, 3) - levels(hr, 3)) ** 2).ravel() for sr, hr in pairs])
    assert abs(psnr - 10 * np.log10(255**2 / errors.mean())) > 1


def test_a_score_keeps_full_precision_and_can_be_reset():
    score = BenchmarkScore()
    score.float()
    score.update(*pair(), 2)
    assert score.psnr.dtype == torch.float64
    assert score.compute().psnr == float(psnr_ssim(*pair(), 2)[0])
    score.reset()
    assert int(score.count) == 0
