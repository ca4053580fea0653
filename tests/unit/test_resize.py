import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from resize_right import interp_methods, resize

from vdsr.errors import InputError
from vdsr.resize import (
    degrade,
    degrade_windows,
    imresize,
    modcrop,
    parse_scale,
    ratio,
    window_margin,
    window_pixels,
    window_size,
    window_start,
)

SCALES = [1.5, 2, 2.5, 3, 3.5, 4]


def image(seed, height, width):
    return torch.from_numpy(np.random.default_rng(seed).random((1, 1, height, width)))


def matlab(signal, factor):
    """imresize along the last axis, literally: every output pixel a weighted sum of mirrored input pixels."""
    length = signal.shape[-1]
    shrink = min(factor, 1)
    columns = []
    for x in range(math.ceil(length * factor)):
        centre = (x + 0.5) / factor - 0.5
        reach = math.ceil(2 / shrink) + 1
        taps = np.arange(math.floor(centre) - reach, math.floor(centre) + reach + 1)
        t = abs(shrink * (centre - taps))
        near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        weights = np.where(t <= 1, near, np.where(t <= 2, far, 0))
        mirror = np.concatenate([np.arange(length), np.arange(length)[::-1]])
        columns.append(signal[..., mirror[taps % (2 * length)]] @ (weights / weights.sum()))
    return np.stack(columns, axis=-1)


# --- against other implementations ---


@pytest.mark.parametrize("scale", [*SCALES, 8])
@pytest.mark.parametrize("cells", [(1, 2), (3, 2), (11, 8)])
def test_both_directions_equal_resize_right(scale, cells):
    fraction = ratio(scale)
    options = {
        "interp_method": interp_methods.cubic,
        "antialiasing": True,
        "by_convs": False,
        "pad_mode": "symmetric",
    }
    low, high = ([n * side for n in cells] for side in (fraction.denominator, fraction.numerator))
    for size, factor in ((high, 1 / fraction), (low, fraction)):
        ours = image(0, *size)
        theirs = resize(ours[0, 0].numpy(), scale_factors=float(factor), **options)
        assert abs(imresize(ours, factor)[0, 0].numpy() - theirs).max() < 1e-9


@pytest.mark.parametrize("factor", [Fraction(1, 3), Fraction(2, 5), Fraction(1, 2), Fraction(3, 2), Fraction(4)])
@pytest.mark.parametrize("size", [(7, 16), (1, 5), (13, 11)])
def test_any_size_equals_matlab_written_out(factor, size):
    ours = image(1, *size)
    rows = matlab(ours[0, 0].numpy(), float(factor))
    expected = matlab(rows.T, float(factor)).T
    assert expected.shape == tuple(math.ceil(n * factor) for n in size)
    assert abs(imresize(ours, factor)[0, 0].numpy() - expected).max() < 1e-9


def test_float32_is_within_a_hundredth_of_a_grey_level():
    hr = image(2, 60, 84)
    assert (degrade(hr.float(), 3).double() - degrade(hr, 3)).abs().max() * 255 < 0.01


# --- properties ---


@settings(deadline=None, max_examples=150)
@given(
    scale=st.sampled_from([*SCALES, 1.2, 10 / 3, 3.9]),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    patch=st.integers(1, 41),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
def test_a_degraded_patch_is_the_patch_of_the_degraded_image(scale, rows, columns, patch, place, seed):
    step = ratio(scale).numerator
    height, width = rows * step, columns * step
    patch = min(patch, height, width)
    hr = image(seed, height, width)
    top, left = (round(p * (n - patch)) for p, n in zip(place, (height, width), strict=True))
    side = window_size(patch, scale)
    first = [window_start(torch.tensor([corner]), scale) for corner in (top, left)]
    y, x = (window_pixels(f, side, torch.tensor([n]))[0] for f, n in zip(first, (height, width), strict=True))
    inside = [corner - int(f) - window_margin(scale) for corner, f in zip((top, left), first, strict=True)]
    window = degrade_windows(hr[:, :, y][..., x], scale)
    cut = window[..., inside[0] : inside[0] + patch, inside[1] : inside[1] + patch]
    whole = degrade(hr, scale)[..., top : top + patch, left : left + patch]
    assert cut.shape == whole.shape == (1, 1, patch, patch)
    assert (cut - whole).abs().max() < 1e-12


@pytest.mark.parametrize("scale", SCALES)
def test_a_constant_image_stays_constant(scale):
    step = ratio(scale).numerator
    hr = torch.full((2, 1, 5 * step, 2 * step), 0.7, dtype=torch.float64)
    assert (degrade(hr, scale) - 0.7).abs().max() < 1e-13


@pytest.mark.parametrize("scale", SCALES)
def test_turning_the_image_turns_its_degradation(scale):
    step = ratio(scale).numerator
    hr = image(3, 4 * step, 7 * step)
    for turned in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)):
        assert (degrade(turned(hr), scale) - turned(degrade(hr, scale))).abs().max() < 1e-12


def test_channels_and_batch_are_kept_apart():
    stack = torch.cat([image(seed, 12, 18) for seed in range(4)]).reshape(2, 2, 12, 18)
    alone = [degrade(stack[i : i + 1, j : j + 1], 3) for i in range(2) for j in range(2)]
    assert torch.allclose(degrade(stack, 3).reshape(4, 12, 18), torch.cat(alone)[:, 0], atol=1e-14)


# --- sizes and scales ---


@pytest.mark.parametrize(
    ("scale", "size", "left"), [(2, (5, 4), (4, 4)), (3, (8, 10), (6, 9)), (2.5, (14, 9), (10, 5)), (4, (3, 9), (0, 8))]
)
def test_modcrop_cuts_the_last_rows_and_columns(scale, size, left):
    hr = image(4, *size)
    assert torch.equal(modcrop(hr, scale), hr[..., : left[0], : left[1]])


@pytest.mark.parametrize(("scale", "size"), [(2, (4, 5)), (3, (7, 6)), (2.5, (10, 12)), (4, (0, 4))])
def test_a_size_that_is_no_multiple_is_refused(scale, size):
    with pytest.raises(ValueError, match=r"no multiple of [2345]: modcrop first"):
        degrade(torch.zeros(1, 1, *size), scale)


@pytest.mark.parametrize("scale", [0, -2, "x", 1, float("nan"), float("inf"), 9, None, True, "", [2], 8.1, 3.14159])
def test_a_bad_scale_is_refused_by_name(scale):
    with pytest.raises(InputError) as caught:
        parse_scale(scale)
    assert str(caught.value).startswith(f"scale {scale!r}: give a whole number or simple fraction above 1, up to 8")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("scale", "value"), [(2, 2.0), ("3", 3.0), (2.5, 2.5), (8, 8.0), (4 / 3, 4 / 3)])
def test_a_good_scale_is_a_float(scale, value):
    assert parse_scale(scale) == value
    assert isinstance(parse_scale(scale), float)


@pytest.mark.parametrize(
    ("scale", "fraction"), [(2, (2, 1)), (1.5, (3, 2)), (3.3, (33, 10)), (10 / 3, (10, 3)), (3.3333333, (10, 3))]
)
def test_a_scale_as_a_fraction(scale, fraction):
    assert ratio(scale) == Fraction(*fraction)
