import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from vdsr import weights
from vdsr.colour import rgb_to_ycbcr
from vdsr.errors import InputError
from vdsr.metrics import psnr
from vdsr.net import VDSR, Bicubic
from vdsr.pixels import Pixels
from vdsr.resize import degrade, imresize, resampling
from vdsr.upscaler import Ensemble, Upscaler, parse_memory, parse_scale

RGB_TO_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255


@pytest.fixture
def net():
    """Three layers whose answer shows, in float64."""
    torch.manual_seed(5)
    net = VDSR(3, 8)
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    net.body[-1].weight.data *= 0.05  # an answer of a few grey levels, or all would be clipped
    net.body[-1].bias.data *= 0.05
    return net.double().eval()


@pytest.fixture
def upscaler(net):
    return Upscaler(net)


def expected(net, rgb, scale):
    """The same by whole arrays: floats in [0, 1], (H, W, 3)."""
    ycbcr = rgb @ RGB_TO_YCBCR.T + np.array([16, 128, 128]) / 255
    planes = torch.from_numpy(ycbcr).movedim(-1, 0)[None]
    high = imresize(planes, Fraction(scale)) if scale > 1 else planes
    with torch.inference_mode():
        high[:, :1] = net(high[:, :1])
    high = (high[0].movedim(0, -1).numpy() - np.array([16, 128, 128]) / 255) @ np.linalg.inv(RGB_TO_YCBCR).T
    return high.clip(0, 1)


# --- the window of a resampling ---


@pytest.mark.parametrize("factor", ["1", "2", "3", "5/2", "4", "13/10", "8", "3/4", "1/2", "21/30", "1/5"])
@pytest.mark.parametrize("length", [1, 2, 5, 33])
def test_any_window_of_a_resampling_is_part_of_matlabs(factor, length):
    factor = Fraction(factor)
    column = torch.rand(length, 1, dtype=torch.float64)
    whole = imresize(column[None, None], factor)[0, 0][:, :1] if factor != 1 else column
    height = math.ceil(length * factor)
    for start, stop in ((0, height), (height // 3, height // 2 + 1), (height - 1, height)):
        rows, matrix = resampling(length, factor, start, stop)
        assert matrix.sum(1).allclose(torch.ones(stop - start, dtype=torch.float64))
        assert (matrix @ column[rows] - whole[start:stop]).abs().max() < 1e-12
        assert rows.stop - rows.start <= min(length, math.ceil((stop - start + 3) / factor) + 4)


def test_by_1_nothing_is_resampled():
    rows, matrix = resampling(9, Fraction(1), 2, 6)
    assert rows == slice(2, 6)
    assert (matrix == torch.eye(4)).all()


# --- colour ---


@pytest.mark.parametrize("scale", [1, 2, 3, 2.5])
def test_luma_by_the_network_chroma_by_bicubic(net, upscaler, noise, scale):
    rgb = noise(0, 17, 23, colour=True)
    found = upscaler.upscale(rgb, scale)
    wanted = expected(net, rgb / 255, scale)
    assert found.dtype == np.uint8
    assert found.shape == (math.ceil(17 * scale), math.ceil(23 * scale), 3)
    assert abs(found / 255 - wanted).max() < 0.5 / 255 + 1e-9
    assert abs(upscaler.upscale(rgb / 255, scale) - wanted).max() < 1e-12  # floats are not rounded


@pytest.mark.parametrize("scale", ["3/2", "5/2", "21/10", "1"])
def test_between_the_scales_it_was_trained_at_the_next_is_reduced(net, noise, scale):
    scale, rgb = Fraction(scale), noise(11, 17, 23, colour=True) / 255
    trained = 2 if scale < 2 else 3
    low = torch.from_numpy(rgb @ RGB_TO_YCBCR[0] + 16 / 255)[None, None]
    with torch.inference_mode():
        luma = imresize(net(imresize(low, Fraction(trained))), scale / trained)[0, 0]
    found = Upscaler(net, scales=[3, 2]).upscale(rgb, scale)
    luma = luma[: found.shape[0], : found.shape[1]].numpy()
    inside = ((found > 0) & (found < 1)).all(-1)  # a colour that was clipped has another luma
    assert inside.mean() > 0.3
    assert abs(found @ RGB_TO_YCBCR[0] + 16 / 255 - luma)[inside].max() < 1e-12
    assert (Upscaler(net, scales=[3, 2]).upscale(rgb, 3) == Upscaler(net).upscale(rgb, 3)).all()
    assert (Upscaler(net, scales=[3, 2]).upscale(rgb, 3.5) == Upscaler(net).upscale(rgb, 3.5)).all()


def test_without_a_network_and_at_scale_1_nothing_changes(noise):
    rgb = noise(1, 9, 11, colour=True)
    assert (Upscaler(Bicubic()).upscale(rgb, 1) == rgb).all()
    deep = noise(2, 9, 11).astype(np.uint16) * 257 + 3
    assert (Upscaler(Bicubic()).upscale(deep, 1) == deep).all()


def test_the_luma_of_what_comes_out_is_the_networks(net, upscaler, structured):
    grey = structured(3, 30, 30)
    rgb = np.stack([grey // 2 + 60] * 3, axis=-1)  # no colour, nothing clipped
    luma = rgb_to_ycbcr(upscaler.upscale(rgb, 2))[..., 0]
    low = torch.from_numpy(rgb_to_ycbcr(rgb)[None, None, ..., 0] / 255)
    with torch.inference_mode():
        wanted = net(imresize(low, Fraction(2)))[0, 0].numpy() * 255
    assert abs(luma - wanted).max() < 2  # rounded to 8 bits three times


def test_grey_is_its_own_luma(net, upscaler, noise):
    grey = noise(4, 12, 15)
    with torch.inference_mode():
        wanted = net(imresize(torch.from_numpy(grey[None, None] / 255), Fraction(3)))[0, 0].clamp(0, 1).numpy()
    assert abs(upscaler.upscale(grey, 3) / 255 - wanted).max() < 0.5 / 255 + 1e-9


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_interpolated_and_changes_no_colour(upscaler, noise, channels):
    picture = np.concatenate([noise(5, 10, 14, colour=True), noise(6, 10, 14)[..., None]], axis=-1)
    picture = picture if channels == 4 else picture[..., 2:]
    found = upscaler.upscale(picture, 2)
    colours = upscaler.upscale(picture[..., : channels - 1], 2)
    assert (found[..., : channels - 1] == colours).all()
    alpha = imresize(torch.from_numpy(picture[..., -1][None, None] / 255), Fraction(2))[0, 0].clamp(0, 1).numpy()
    assert abs(found[..., -1] / 255 - alpha).max() < 0.5 / 255 + 1e-9


# --- what people have in their hands ---


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_pillow_image_is_its_array(upscaler, noise, mode):
    image = Image.fromarray(noise(7, 8, 9, colour=True)).convert(mode)
    found = upscaler.upscale(image, 2)
    assert (found.mode, found.size) == (mode, (18, 16))
    assert (np.asarray(found) == upscaler.upscale(np.asarray(image), 2)).all()


def test_palettes_and_masks_become_what_they_stand_for(upscaler, noise):
    image = Image.fromarray(noise(8, 8, 9, colour=True))
    assert upscaler.upscale(image.quantize(4), 2).mode == "RGB"
    assert upscaler.upscale(image.convert("1"), 2).mode == "L"
    clear = image.quantize(4)
    clear.info["transparency"] = 0
    assert upscaler.upscale(clear, 2).mode == "RGBA"


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64])
def test_a_tensor_is_an_array_with_the_channels_in_front(upscaler, noise, kind):
    array = noise(9, 8, 9, colour=True)
    batch = torch.from_numpy(np.stack([array, array[::-1]])).movedim(-1, 1)
    batch = batch if kind == torch.uint8 else (batch.double() / 255).to(kind)
    found = upscaler.upscale(batch, 2)
    assert (found.dtype, found.shape) == (kind, (2, 3, 16, 18))
    assert (found[0] == upscaler.upscale(batch[0], 2)).all()
    wanted = upscaler.upscale(array / 255, 2)
    scale = 255 if kind == torch.uint8 else 1
    assert abs(found[0].movedim(0, -1).numpy() / scale - wanted).max() < (0.51 / 255 if scale == 255 else 1e-6)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (np.zeros((4, 4, 5), np.uint8), "uint8"),
        (np.zeros((4,), np.uint8), "give"),
        (np.zeros((0, 4), np.uint8), "give"),
        (np.zeros((4, 4), np.int32), "int32"),
        (torch.zeros(4, 4), "tensor of"),
        (torch.zeros(2, 2, 4, 4, 4), "tensor of"),
        ("photo.jpg", "a str"),
        (Image.new("CMYK", (4, 4)), "CMYK"),
        (Image.new("F", (4, 4)), "mode F"),
    ],
)
def test_anything_else_is_refused_in_one_line(upscaler, bad, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        upscaler.upscale(bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [0.5, 0, -2, 40, 8.1, "large", None, float("nan"), float("inf")])
def test_scales_that_there_are_not(upscaler, scale):
    with pytest.raises(InputError, match=r"^scale .*from 1 to 8"):
        upscaler.upscale(np.zeros((4, 4), np.uint8), scale)


def test_a_scale_is_the_decimal_that_was_typed():
    assert [parse_scale(s) for s in (2, 2.5, "1.1", 1, 8)] == [2, Fraction(5, 2), Fraction(11, 10), 1, 8]
    assert Upscaler(Bicubic()).upscale(np.zeros((10, 30), np.uint8), 1.1).shape == (11, 33)


# --- tiles and memory ---


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("scales", [(), (3,), (4,)])
@pytest.mark.parametrize("scale", ["2", "5/2"])
def test_tiled_equals_untiled(net, noise, scale, scales, ensemble):
    upscaler = Upscaler(net, scales=scales, ensemble=ensemble)
    pixels = Pixels(noise(10, 37, 52, colour=True) / 255)
    whole = next(upscaler.strips(pixels, Fraction(scale), 512))
    done = []
    strips = list(upscaler.strips(pixels, Fraction(scale), 32, done.append))
    assert len(strips) == math.ceil(37 * Fraction(scale) / 32) > 1
    assert abs(np.concatenate(strips) - whole).max() < 1e-12
    assert sum(done) == whole.shape[0] * whole.shape[1]


def test_less_memory_smaller_tiles_and_then_a_line():
    net = VDSR(20, 64)
    upscaler = Upscaler(net, scales=[2], memory=10**12)
    two = Fraction(2)
    assert upscaler.tile_within(0, two) == 512
    assert upscaler.tile_within(0, two / 2) == 256  # the network sees as much
    upscaler._room = 160e6
    small = upscaler.tile_within(0, two)
    assert 32 <= small < 512
    assert upscaler.tile_within(30 * 10**6, two) < small
    with pytest.raises(InputError, match=r"^needs [\d,]+ MB more than memory= allows$"):
        upscaler.tile_within(10**9, two)


def test_sizes_of_memory():
    assert [parse_memory(s) for s in ("1GB", "800 MB", "1.5g", 4096)] == [10**9, 8 * 10**8, 15 * 10**8, 4096]
    for bad in ("much", "0", "-1GB", "", None):
        with pytest.raises(InputError, match="1GB or 800MB"):
            parse_memory(bad)


# --- ensemble ---


def test_the_ensemble_is_the_mean_over_eight_turns_and_flips(net):
    ilr = torch.rand(1, 1, 9, 13, dtype=torch.float64)
    with torch.inference_mode():
        views = []
        for flip in (False, True):
            for turns in range(4):
                seen = torch.rot90(ilr.flip(-1) if flip else ilr, turns, (2, 3))
                back = torch.rot90(net(seen), -turns, (2, 3))
                views.append(back.flip(-1) if flip else back)
        assert (Ensemble(net)(ilr) - torch.stack(views).mean(0)).abs().max() < 1e-12
        assert (Ensemble(net)(ilr) - net(ilr)).abs().max() > 1e-4
        turned = Ensemble(net)(torch.rot90(ilr, 1, (2, 3)))
        assert (torch.rot90(Ensemble(net)(ilr), 1, (2, 3)) - turned).abs().max() < 1e-12


# --- the door ---


def test_by_name_or_path_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    weights.save(VDSR(2, 4), tmp_path / f"{weights.DEFAULT}.safetensors")
    import vdsr

    by_name, by_path = vdsr.Upscaler.load(), vdsr.Upscaler.load(tmp_path / f"{weights.DEFAULT}.safetensors")
    picture = np.zeros((4, 4, 3), np.uint8)
    assert (by_name.upscale(picture, scale=3) == by_path.upscale(picture, scale=3)).all()
    with pytest.raises(InputError, match="no network named 'nothing'"):
        vdsr.Upscaler.load("nothing")
    with pytest.raises(InputError, match="accelerator=tpu"):
        vdsr.Upscaler.load(accelerator="tpu")


def test_importing_vdsr_waits_for_nothing():
    script = "import sys, vdsr; assert 'torch' not in sys.modules and 'numpy' not in sys.modules; vdsr.__version__"
    subprocess.run([sys.executable, "-c", script], check=True)
    import vdsr

    with pytest.raises(AttributeError, match="no attribute 'upscale'"):
        vdsr.upscale  # noqa: B018


def test_in_colour_its_luma_scores_as_evaluate_scores_it(net, structured):
    """A coloured picture made smaller and upscaled again: the luma's PSNR is the benchmark's."""
    grey = structured(7, 60, 72)[..., None] / 255
    hr = 0.25 + 0.5 * grey * [0.9, 1.0, 0.8] + np.linspace(0, 0.1, 72)[None, :, None] * [0, 0.5, 1]  # nothing clips
    hr = (hr * 255).round().astype(np.uint8)
    low = imresize(torch.from_numpy(hr / 255).movedim(-1, 0)[None], Fraction(1, 3))[0].movedim(0, -1).numpy()
    found = Upscaler(net).upscale(low, 3)
    target = torch.from_numpy(rgb_to_ycbcr(hr)[None, None, ..., 0] / 255)
    ours = torch.from_numpy((found @ RGB_TO_YCBCR[0] + 16 / 255)[None, None])
    with torch.inference_mode():
        theirs = net(degrade(target, 3))
    assert float(psnr(ours, target, 3)) == pytest.approx(float(psnr(theirs, target, 3)), abs=0.01)
