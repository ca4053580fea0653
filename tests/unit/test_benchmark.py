import time

import pytest
import torch

from vdsr.benchmark import Row, means, restore, run, seconds_per_image
from vdsr.data import load_pictures
from vdsr.metrics import psnr_ssim
from vdsr.net import VDSR, Bicubic
from vdsr.resize import degrade, modcrop
from vdsr.shards import ShardSet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(sets):
    return load_pictures(ShardSet.open(sets.val))


def test_restore_cuts_degrades_and_asks_the_network(pictures):
    torch.manual_seed(0)
    net = VDSR(3, 4)
    ilr, sr, hr = restore(net, pictures[0], 4, CPU)
    assert hr.shape == (1, 1, 60, 68)  # of 60 × 71
    assert torch.equal(hr, modcrop(pictures[0].hr, 4))
    assert torch.equal(ilr, degrade(hr, 4))
    with torch.inference_mode():
        assert torch.equal(sr, net(ilr))
    assert not sr.requires_grad


def test_restore_is_in_float32_whatever_training_is(pictures):
    torch.manual_seed(0)
    net = VDSR(3, 4)
    alone = restore(net, pictures[0], 2, CPU).sr
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(restore(net, pictures[0], 2, CPU).sr, alone)
        assert not torch.equal(net(degrade(modcrop(pictures[0].hr, 2), 2)), alone)


def test_a_row_for_every_picture_and_scale(pictures):
    torch.manual_seed(0)
    net, calls = VDSR(3, 4), []
    rows = run(net, pictures, (2, 3), CPU, lambda: calls.append(1))
    assert [(row.set, row.image, row.scale) for row in rows] == [
        ("val", key, scale) for key in ("val-v10", "val-v11") for scale in (2, 3)
    ]
    assert len(calls) == 4
    ilr, sr, hr = restore(net, pictures[1], 3, CPU)
    assert (rows[3].psnr, rows[3].ssim) == tuple(map(float, psnr_ssim(sr, hr, 3)))
    assert (rows[3].bicubic_psnr, rows[3].bicubic_ssim) == tuple(map(float, psnr_ssim(ilr, hr, 3)))
    assert rows[3].psnr < rows[3].bicubic_psnr - 1  # untrained


def test_timed_is_the_network_alone_on_each_picture_after_one_to_warm_up(pictures):
    class Slow(Bicubic):
        def forward(self, ilr):
            seen.append((*ilr.shape[-2:], ilr.dtype))
            time.sleep(0.01)
            return ilr

    seen = []
    with torch.autocast("cpu", torch.bfloat16):
        seconds = seconds_per_image(Slow(), pictures, CPU)
    sizes = [(60, 71, torch.float32)] * 2
    assert seen == [sizes[0], *sizes]
    assert seconds >= 0.01


def test_bicubic_is_level_with_itself(pictures):
    for row in run(Bicubic(), pictures, (2, 2.5), CPU):
        assert (row.psnr, row.ssim) == (row.bicubic_psnr, row.bicubic_ssim)
        assert 15 < row.psnr < 35


def test_means_are_over_the_images_of_a_set_at_a_scale():
    rows = [
        Row("a", "1", 2, 30, 0.8, 20, 0.6),
        Row("b", "1", 2, 10, 0.1, 10, 0.1),
        Row("a", "2", 2, 34, 0.9, 26, 0.8),
        Row("a", "1", 3, 25, 0.5, 24, 0.4),
    ]
    first, *others = means(rows)
    assert (first.set, first.image, first.scale) == ("a", "2", 2)
    assert (first.psnr, first.ssim, first.bicubic_psnr) == (32, pytest.approx(0.85), 23)
    assert first.bicubic_ssim == pytest.approx(0.7)
    assert others == [Row("b", "1", 2, 10, 0.1, 10, 0.1), Row("a", "1", 3, 25, 0.5, 24, 0.4)]
