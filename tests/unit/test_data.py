import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vdsr.colour import luma
from vdsr.data import Batches, LumaStore, Pair, Pictures, SuperResolutionData, load_pictures, pair, parse_scales
from vdsr.errors import InputError
from vdsr.plan import Crops, Plan
from vdsr.resize import degrade, modcrop
from vdsr.shards import DamagedError, ShardSet


def cut(store, crops, patch):
    return pair(store.windows(crops, patch), patch)


def crops(scale, *samples):
    return Crops(scale, *(np.array(column, dtype=np.int64) for column in zip(*samples, strict=True)))


def turned(patch, bits):
    if bits & 1:
        patch = np.flipud(patch)
    if bits & 2:
        patch = np.fliplr(patch)
    return patch.T if bits & 4 else patch


def whole(image, scale):
    """ILR and HR of an entire picture, by the float64 road."""
    hr = modcrop(torch.from_numpy(image)[None, None].double() / 255, scale)
    return degrade(hr, scale)[0, 0].numpy(), hr[0, 0].numpy()


def module(sets, **changes):
    return SuperResolutionData(
        **{"train": sets.train, "val": [sets.val], "scales": [2, 3], "patch": 24, "batch_size": 8, **changes}
    )


def on_rank(data, rank=0, ranks=1, step=0, accumulate=1):
    data.trainer = SimpleNamespace(
        world_size=ranks,
        global_rank=rank,
        global_step=step,
        accumulate_grad_batches=accumulate,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    return data


# --- crops ---


@pytest.mark.parametrize("scale", [1.5, 2, 2.5, 3, 4])
def test_a_crop_is_the_crop_of_the_degraded_picture(noise, scale):
    images = [noise(0, 45, 62), noise(1, 63, 44)]
    store, patch = LumaStore(images), 17
    wanted = []
    for number, image in enumerate(images):
        height, width = whole(image, scale)[1].shape
        bottom, right = height - patch, width - patch
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (7, 11), (bottom // 2, right - 1)]
        wanted += [(number, top, left, 0) for top, left in corners]
    made = cut(store, crops(scale, *wanted), patch)
    assert made.ilr.shape == made.hr.shape == (12, 1, patch, patch)
    assert made.ilr.dtype == made.hr.dtype == torch.float32
    for (number, top, left, _), ilr, hr in zip(wanted, *made, strict=True):
        expected = [a[top : top + patch, left : left + patch] for a in whole(images[number], scale)]
        assert abs(ilr[0].numpy() - expected[0]).max() < 2e-5  # float32: a two-hundredth of a grey level
        assert abs(hr[0].numpy() - expected[1]).max() < 1e-7


@pytest.mark.parametrize("bits", range(8))
def test_each_of_the_eight_turns(noise, bits):
    image = noise(2, 30, 34)
    store = LumaStore([image])
    made = cut(store, crops(2, (0, 5, 9, bits), (0, 5, 9, 0)), 12)
    for plane, picture in zip(made, whole(image, 2), strict=True):
        expected = turned(picture[5:17, 9:21], bits)
        assert abs(plane[0, 0].numpy() - expected).max() < 2e-5
        assert np.array_equal(plane[0, 0].numpy(), turned(plane[1, 0].numpy(), bits))


def test_a_patch_as_large_as_its_picture(noise):
    image = noise(3, 12, 12)
    ilr, hr = cut(LumaStore([image]), crops(3, (0, 0, 0, 0)), 12)
    assert abs(ilr[0, 0].numpy() - whole(image, 3)[0]).max() < 2e-5
    assert np.array_equal(hr[0, 0].numpy(), (torch.from_numpy(image).float() / 255).numpy())


# --- the module ---


def test_a_batch_holds_what_the_plan_says(sets):
    data = on_rank(module(sets))
    made = next(iter(data.train_dataloader()))
    assert isinstance(made, Pair)
    assert made.hr.shape == made.ilr.shape == (8, 1, 24, 24)
    pictures = [luma(picture.pixels) for picture in load_pictures(data.train_shards)]
    samples = [(crop.scale, *row) for crop in data.plan.step(0) for row in zip(*crop[1:], strict=True)]
    for (scale, image, top, left, turns), ilr, hr in zip(samples, *made, strict=True):
        expected = [turned(a[top : top + 24, left : left + 24], turns) for a in whole(pictures[image], scale)]
        assert abs(ilr[0].numpy() - expected[0]).max() < 2e-5
        assert abs(hr[0].numpy() - expected[1]).max() < 1e-7


def test_ranks_share_a_batch(sets):
    halves = [next(iter(on_rank(module(sets), rank, 2).train_dataloader())) for rank in (0, 1)]
    together = next(iter(on_rank(module(sets)).train_dataloader()))
    for plane in (0, 1):
        shared = [patch.numpy().tobytes() for half in halves for patch in half[plane]]
        assert sorted(shared) == sorted(patch.numpy().tobytes() for patch in together[plane])


def test_a_continued_run_begins_where_it_stopped(sets):
    whole_run = itertools.islice(on_rank(module(sets)).train_dataloader(), 6, 9)
    continued = on_rank(module(sets), step=3, accumulate=2).train_dataloader()
    for expected, found in zip(whole_run, continued, strict=False):
        assert torch.equal(expected.ilr, found.ilr)
        assert torch.equal(expected.hr, found.hr)


def test_batches_never_end_and_can_be_read_again(noise):
    plan, store = Plan([40], [40], [2], 20, 2, 0), LumaStore([noise(0, 40, 40)])
    batches = Batches(plan, store, 20, 5, range(2))
    for _ in range(2):
        for step, made in zip(range(5, 150), batches, strict=False):  # past the first steps made together
            assert torch.equal(made.hr, cut(store, plan.step(step)[0], 20).hr)


def test_benchmark_pictures_are_dealt_out_to_the_ranks(sets):
    data = module(sets, val=[sets.val, sets.train])
    dealt = [[p.sample.key for p in on_rank(data, rank, 4).val_dataloader()] for rank in range(4)]
    assert dealt == [["val-v10", "train-t2"], ["val-v11", "train-t3"], ["train-t0"], ["train-t1"]]
    assert len(Pictures(data.pictures(data.val_shards[0]), 0, 4)) == 1


def test_test_sets_are_those_of_validation_unless_named(sets):
    assert [s.name for s in module(sets).test_shards] == ["val"]
    data = on_rank(module(sets, test=[sets.train]))
    assert [s.name for s in data.test_shards] == ["train"]
    assert [p.sample.key for p in data.test_dataloader()] == [f"train-t{n}" for n in range(4)]
    assert [p.sample.key for p in data.val_dataloader()] == ["val-v10", "val-v11"]


def test_scales_to_score_at_are_those_trained_on_unless_named(sets):
    assert module(sets).val_scales == (2, 3)
    assert module(sets, val_scales=[4]).val_scales == (4,)
    assert module(sets, val_scales=[4]).test_scales == (4,)
    assert module(sets, val_scales=[4], test_scales=[1.5, 3]).test_scales == (1.5, 3)


def test_a_picture_in_colour_gives_its_luma(tmp_path, prepare, noise):
    rgb, grey = noise(4, 20, 21, colour=True), noise(5, 20, 21)
    shards = prepare(tmp_path / "mixed", {"a": rgb, "b": grey})
    first, second = load_pictures(shards)
    assert (first.set, first.sample.name, second.sample.name) == ("mixed", "a", "b")
    assert np.array_equal(first.pixels, rgb)
    for picture, plane in ((first, luma(rgb)), (second, grey)):
        assert picture.hr.shape == (1, 1, 20, 21)
        assert torch.equal(picture.hr[0, 0], torch.from_numpy(plane).float() / 255)


def test_pictures_are_decoded_once(sets):
    data = module(sets)
    assert data.pictures(data.val_shards[0]) is data.pictures(data.val_shards[0])
    assert data.store is data.store


# --- bad input ---


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"train": "/nowhere/mine"}, "no shards in /nowhere/mine; make them with `python data_prep/prepare.py"),
        ({"val": ["/nowhere/set5"]}, "no shards in /nowhere/set5; make them with `python data_prep/prepare.py"),
        ({"test": ["/nowhere/b100"]}, "no shards in /nowhere/b100; make them with"),
        ({"patch": 97}, r"train: train-t0 \(96×96\) is too small for patches of 97 pixels: lower data.patch"),
        ({"patch": 0}, "data.patch=0: must be at least 1"),
        ({"batch_size": 0}, "data.batch_size=0: must be at least 1"),
        ({"batch_size": -4}, "data.batch_size=-4: must be at least 1"),
        ({"batch_size": 500}, "gives 64 patches of 24×24 at ×2, a batch of 500 needs 250: lower data.batch_size"),
        ({"scales": []}, r"data.scales is empty: give at least one scale, such as \[2,3,4\]"),
        ({"scales": [2, 0]}, "scale 0: give a whole number or simple fraction above 1"),
        ({"scales": [-2]}, "scale -2: give a whole number or simple fraction above 1"),
        ({"scales": ["x"]}, "scale 'x': give a whole number or simple fraction above 1"),
        ({"scales": 3}, r"data.scales=3: give a list of scales, such as \[2,3,4\]"),
        ({"scales": "34"}, "data.scales=34: give a list of scales"),
        ({"val": []}, "data.val is empty"),
        ({"test_scales": [0.5]}, "scale 0.5: give"),
        ({"val_scales": [1]}, "scale 1: give a whole number or simple fraction above 1"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(sets, changes, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        module(sets, **changes)
    assert "\n" not in str(caught.value)


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(sets):
    with pytest.raises(InputError, match=r"data.batch_size=8 does not divide among 3 ranks"):
        on_rank(module(sets), 0, 3).train_dataloader()


def test_a_damaged_shard_is_refused_by_name(tmp_path, prepare, noise):
    shards = prepare(tmp_path / "mine", {"a": noise(6, 30, 30)})
    path = shards.root / shards.shards[0].file
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"mine-00000.tar was changed: its SHA-256 differs; prepare it again"):
        load_pictures(ShardSet.open(shards.root))


def test_scales_are_sorted_and_each_once():
    assert parse_scales([4, "2", 2.0, 2.5], "scales") == (2.0, 2.5, 4.0)
