import numpy as np
import pytest

from vdsr.colour import luma, rgb_to_ycbcr, ycbcr_to_rgb


def pixel(*values):
    return np.array([[values]], dtype=np.uint8)


# What MATLAB's rgb2ycbcr prints.
@pytest.mark.parametrize(
    ("rgb", "ycbcr"),
    [
        ((0, 0, 0), (16, 128, 128)),
        ((255, 255, 255), (235, 128, 128)),
        ((255, 0, 0), (81, 90, 240)),
        ((0, 255, 0), (145, 54, 34)),
        ((0, 0, 255), (41, 240, 110)),
        ((255, 255, 0), (210, 16, 146)),
        ((0, 255, 255), (170, 166, 16)),
        ((255, 0, 255), (106, 202, 222)),
    ],
)
def test_rgb_to_ycbcr_as_matlab(rgb, ycbcr):
    assert rgb_to_ycbcr(pixel(*rgb)).tolist() == [[list(ycbcr)]]
    assert luma(pixel(*rgb)).tolist() == [[ycbcr[0]]]
    assert rgb_to_ycbcr(pixel(*rgb)).dtype == luma(pixel(*rgb)).dtype == np.uint8


def test_ycbcr_to_rgb_comes_back_to_two_levels(noise):
    rgb = noise(0, 64, 64, colour=True)
    back = ycbcr_to_rgb(rgb_to_ycbcr(rgb)).astype(int)
    assert abs(back - rgb).max() <= 2  # half a level of Y, Cb and Cr each
    assert abs(back - rgb).mean() < 0.6


def test_ycbcr_outside_the_cube_is_clipped():
    assert ycbcr_to_rgb(np.array([[[255.0, 128, 128], [0.0, 128, 128], [81.0, 90, 255]]])).tolist() == [
        [[255, 255, 255], [0, 0, 0], [255, 0, 0]]
    ]


def test_a_grey_picture_is_its_own_luma(noise):
    grey = noise(1, 8, 9)
    assert np.array_equal(luma(grey), grey)


def test_grey_valued_rgb_goes_through_the_matrix():
    grey = np.arange(256, dtype=np.uint8)[None]
    expected = np.floor(16 + 219 * np.arange(256) / 255 + 0.5)
    assert np.array_equal(luma(np.dstack([grey] * 3))[0], expected)


def test_luma_is_the_first_channel(noise):
    rgb = noise(2, 40, 40, colour=True)
    assert np.array_equal(luma(rgb), rgb_to_ycbcr(rgb)[..., 0])
