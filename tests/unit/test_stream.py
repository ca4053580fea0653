import itertools
import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from vdsr import shards as shards_module
from vdsr.colour import luma
from vdsr.data import LumaStore, Pair, SuperResolutionData, load_pictures
from vdsr.errors import InputError
from vdsr.plan import Plan
from vdsr.resize import window_size
from vdsr.shards import Shard, ShardSet, sha256
from vdsr.source import Source, images_in
from vdsr.stream import Settings, Stream, StreamPlan, guard

PATCH = 20


@pytest.fixture(scope="session")
def photos(tmp_path_factory, prepare, noise):
    """Eleven pictures of several sizes in four shards."""
    with mock.patch.object(shards_module, "IMAGES_PER_SHARD", 3):
        pictures = {f"p{n:02d}": noise(n, 45 + 7 * n, 110 - 6 * n, colour=n % 2 == 0) for n in range(10)}
        return prepare(tmp_path_factory.mktemp("stream") / "photos", {**pictures, "p10": noise(99, 44, 47)})


def plan(photos, scales=(2, 3, 4), batch_size=12, seed=5, turn=True, **settings):
    settings = Settings(**{"workers": 0, "buffer": 4, "crops": 5, **settings})
    return StreamPlan(photos, scales, PATCH, batch_size, seed, turn, settings)


def stream(made, photos, cut=lambda pixels, crops: crops, rank=0, ranks=1, start=0, batch_size=12):
    """A stream of crops in place of windows: batches as lists of (image, top, left, turns), scale by scale."""
    share = batch_size // ranks
    merge = lambda rows: [tuple(int(column[row]) for column in crops[1:]) for crops, row in rows]  # noqa: E731
    return Stream(
        made, Source(str(photos.root)), range(rank * share, (rank + 1) * share), rank, ranks, start, cut, merge
    )


def module(sets, photos, rank=0, ranks=1, step=0, accumulate=1, **changes):
    settings = Settings(**{"workers": 0, "buffer": 4, "crops": 5, **changes.pop("stream", {})})
    common = {"train": str(photos.root), "val": [sets.val], "scales": [2, 3, 4], "patch": PATCH, "batch_size": 12}
    data = SuperResolutionData(**{**common, "mode": "stream", "stream": settings, "seed": 5, **changes})
    data.trainer = SimpleNamespace(
        world_size=ranks, global_rank=rank, global_step=step, accumulate_grad_batches=accumulate
    )
    return data


def first_pair(data):
    loader = iter(data.train_dataloader())
    try:
        return data.transfer_batch_to_device(next(loader), torch.device("cpu"), 0)
    finally:  # an error would keep it until some later test
        getattr(loader, "_shutdown_workers", lambda: None)()


def take(batches, count):
    return list(itertools.islice(batches, count))


def same(batches, others):
    """Whether two lists of batches of windows are equal, bit for bit."""
    flat = [[window for batch in made for window in batch] for made in (batches, others)]
    return len(flat[0]) == len(flat[1]) and all(
        a.scale == b.scale and all(torch.equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))
        for a, b in zip(*flat, strict=True)
    )


# --- which image when ---


def visits(made, lane, lanes, start, count):
    found = ((read.visit + i, read.shard, place) for read in made.reads(lane, lanes, start)
             for i, place in enumerate(read.images))  # fmt: skip
    return take(found, count)


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 7, 11, 16])
def test_each_epoch_visits_each_image_once_over_all_lanes(photos, lanes):
    made, total = plan(photos), photos.count
    everyone = {(number, place) for number, shard in enumerate(photos.shards) for place in range(shard.count)}
    position = [0] * lanes
    orders = []
    for epoch in range(2 * lanes):
        seen = []
        for lane in range(lanes):
            run = (lane + epoch) % lanes
            length = (run + 1) * total // lanes - run * total // lanes
            seen += [place for _, *place in visits(made, lane, lanes, position[lane], length)]
            position[lane] += length
        assert len(seen) == total  # no image for two lanes
        assert {tuple(place) for place in seen} == everyone
        assert max(position) - min(position) <= 1
        orders.append(seen)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("lanes", [1, 3, 16])
def test_visits_begin_anywhere(photos, lanes):
    made = plan(photos)
    for lane in range(lanes):
        whole = visits(made, lane, lanes, 0, 60)
        assert [number for number, *_ in whole] == list(range(60))
        for start in (1, 4, 11, 29):
            assert visits(made, lane, lanes, start, 60 - start) == whole[start:]


def test_another_seed_has_another_order(photos):
    assert visits(plan(photos), 0, 1, 0, 11) != visits(plan(photos, seed=6), 0, 1, 0, 11)


def test_the_grid_is_the_one_of_the_plan_in_memory(photos):
    made = plan(photos, scales=(1.5, 2, 2.5, 3, 4))
    memory = Plan(*zip(*[(s.height, s.width) for s in photos.samples], strict=True), made.scales, PATCH, 5, 0)
    for scale, table in zip(made.scales, memory.tables, strict=True):
        corners = [
            (image, row * PATCH, column * PATCH)
            for image in range(photos.count)
            for row, column in itertools.product(*map(range, made.cells(image, scale)))
        ]
        assert corners == [tuple(row) for row in table.tolist()]


# --- batches ---


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 12), (2, 12), (4, 12), (2, 14), (12, 12)])
def test_batches_have_the_plan_s_share_of_each_scale(photos, ranks, batch_size):
    memory = Plan([100], [100], (2, 3, 4), PATCH, batch_size, 0)
    total = Counter()
    for rank in range(ranks):
        made = stream(plan(photos, batch_size=batch_size), photos, rank=rank, ranks=ranks, batch_size=batch_size)
        sizes = {tuple(map(len, batch)) for batch in take(made, 30)}
        share = batch_size // ranks
        expected = Counter(i % 3 for i in range(rank * share, (rank + 1) * share))
        assert sizes == {tuple(expected[scale] for scale in sorted(expected))}
        total += expected
    assert [total[scale] for scale in range(3)] == memory.shares


def test_every_crop_comes_once_and_waits_no_longer_than_the_buffer(photos):
    crops, batches = 5, 60
    made = stream(plan(photos, crops=crops), photos)
    drawn = []
    made.cut = lambda pixels, crops: drawn.append(crops) or crops
    came = take(made, batches)
    assert made.depth == round(4 * crops / 12)
    for number, scale in enumerate((2, 3, 4)):
        entered = [tuple(map(int, row)) for c in drawn if c.scale == scale for row in zip(*c[1:], strict=True)]
        left = [row for batch in came for row in batch[number]]
        certain = (batches - made.depth) * made.shares[number]  # those have had the time to leave
        assert not Counter(entered[:certain]) - Counter(left)
        assert not Counter(left) - Counter(entered)
        assert left != entered[: len(left)]


def test_a_visit_gives_each_corner_once_while_there_are_others(photos):
    made = plan(photos, crops=5)
    seen = []
    for visit in range(40):
        _, drawn = made.draw(0, visit, 9, np.array([0, 1, 2, 0, 1]))
        for number, crops in drawn:
            rows, columns = made.cells(9, made.scales[number])
            corners = list(zip(crops.top.tolist(), crops.left.tolist(), strict=True))
            assert len(set(corners)) == min(len(corners), rows * columns)
            seen += [(crops.scale, *corner) for corner in corners]
    assert len(set(seen)) == sum(np.prod(made.cells(9, scale)) for scale in made.scales)  # in time all of them


def test_a_picture_with_fewer_corners_than_crops_gives_them_again(photos):
    made = plan(photos, crops=40)
    _, drawn = made.draw(0, 0, 10, np.zeros(40, dtype=np.int64))
    ((_, crops),) = drawn
    assert set(Counter(zip(crops.top.tolist(), crops.left.tolist(), strict=True)).values()) == {10}  # 2 × 2 corners


def test_turns_cover_all_eight_unless_left_out(photos):
    turns = [Counter(row[3] for batch in take(stream(plan(photos, turn=turn), photos), 60) for scale in batch for row in
                     scale) for turn in (True, False)]  # fmt: skip
    assert set(turns[0]) == set(range(8))
    assert set(turns[1]) == {0}


def test_a_larger_buffer_mixes_more_images(photos):
    images = [
        np.mean([len({row[0] for scale in batch for row in scale}) for batch in take(made, 80)[40:]])
        for made in (stream(plan(photos, buffer=buffer, crops=12), photos) for buffer in (1, 10))
    ]
    assert images[0] < 3
    assert images[1] > 5


def test_windows_are_those_that_memory_cuts(sets, photos):
    data = module(sets, photos)
    store = LumaStore([luma(picture.pixels) for picture in load_pictures(photos)])
    crops = stream(data.plan, photos)
    for batch, rows in zip(take(data.train_dataloader(), 12), crops, strict=False):
        assert [windows.scale for windows in batch] == [2, 3, 4]
        for windows, samples in zip(batch, rows, strict=True):
            columns = [np.array(column) for column in zip(*samples, strict=True)]
            expected = store.windows(plan(photos).draw(0, 0, 0, np.array([0]))[1][0][1]._replace(
                scale=windows.scale, image=columns[0], top=columns[1], left=columns[2], turns=columns[3]), PATCH
            )  # fmt: skip
            assert same([[windows]], [[expected]])
            assert windows.pixels.dtype == torch.uint8
            assert windows.pixels.shape == (4, 1, *[window_size(PATCH, windows.scale)] * 2)


def test_windows_become_patches_on_the_device(sets, photos):
    data = module(sets, photos)
    made = first_pair(data)
    assert isinstance(made, Pair)
    assert made.ilr.shape == made.hr.shape == (12, 1, PATCH, PATCH)
    assert 0 < (made.ilr - made.hr).abs().mean() < 0.3


def test_the_number_of_patches_in_an_epoch(sets, photos):
    assert module(sets, photos).plan.patches == 11 * 5


# --- again, and onwards ---


def test_the_same_ranks_and_workers_give_the_same_batches(sets, photos):
    first, second = (take(module(sets, photos).train_dataloader(), 10) for _ in range(2))
    assert same(first, second)
    assert not same(first, take(module(sets, photos, seed=6).train_dataloader(), 10))


@pytest.mark.parametrize("ranks", [1, 2])
def test_any_batch_can_be_the_first(photos, ranks):
    made = plan(photos, buffer=6)
    for rank in range(ranks):
        whole = take(stream(made, photos, rank=rank, ranks=ranks), 90)
        for start in (1, 2, 3, 17, 50, 83):
            assert take(stream(made, photos, rank=rank, ranks=ranks, start=start), 90 - start) == whole[start:]


@pytest.mark.parametrize("step", [3, 8])
def test_a_continued_run_has_the_batches_that_it_would_have_had(sets, photos, step):
    settings = {"workers": 2, "buffer": 3}
    whole = take(module(sets, photos, stream=settings, accumulate=2).train_dataloader(), 22)
    continued = take(module(sets, photos, stream=settings, step=step, accumulate=2).train_dataloader(), 22 - 2 * step)
    assert same(continued, whole[2 * step :])


def test_a_late_start_reads_no_shard_that_it_does_not_need(photos):
    made = stream(plan(photos, buffer=1, crops=12), photos, start=500)
    opened = []
    with mock.patch.object(made.source, "open", lambda shard: opened.append(shard) or Source.open(made.source, shard)):
        take(made, 1)
    assert len(opened) <= 3


def test_workers_and_ranks_share_nothing(sets, photos):
    dealt = [take(stream(plan(photos), photos, rank=rank, ranks=2), 20) for rank in (0, 1)]
    assert dealt[0] != dealt[1]


# --- memory ---


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the memory in use")
def test_memory_stays_flat_over_many_images(tmp_path, sets, prepare, structured):
    rows = np.kron(structured(0), np.ones((5, 5), dtype=np.uint8))  # 480 × 480, and three times that as RGB
    image = np.stack([rows] * 3, axis=-1)
    with mock.patch.object(shards_module, "IMAGES_PER_SHARD", 8):
        shards = prepare(tmp_path / "many", {f"m{n}": image for n in range(160)})
    data = module(sets, shards, batch_size=12, stream={"buffer": 16, "crops": 4})
    batches = iter(data.train_dataloader())
    per_epoch = data.plan.patches // 12

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    take(batches, per_epoch // 2)
    before = resident()
    take(batches, per_epoch)
    assert resident() - before < 12  # the images are 37 MB in luma, 111 MB in colour


# --- what cannot be streamed ---


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mode": "disk"}, "data.mode=disk: give memory or stream"),
        ({"mode": "memory", "train": "http://host/set"}, "data.train=http://host/set is an address: add data.mode=st"),
        ({"train": "ftp://host/set"}, "data.train=ftp://host/set: give a prepared folder, or its http:// or https://"),
        ({"train": "pipe:cat /etc/passwd"}, "no shards in pipe:cat /etc/passwd; make them with"),
        ({"batch_size": 2}, "data.batch_size=2: give each of the 3 scales at least one"),
        ({"patch": 48}, r"photos: photos-p00 \(110×45\) is too small for patches of 48 pixels: lower data.patch"),
        ({"stream": {"workers": -1}}, "data.stream.workers=-1: give a whole number, 0 or more"),
        ({"stream": {"buffer": 0}}, "data.stream.buffer=0: give a whole number, 1 or more"),
        ({"stream": {"crops": 2.5}}, r"data.stream.crops=2.5: give a whole number, 1 or more"),
        ({"stream": {"retries": "x"}}, "data.stream.retries=x: give a whole number, 0 or more"),
        ({"stream": {"timeout": 0}}, "data.stream.timeout=0: give seconds, above 0"),
    ],
)
def test_what_cannot_be_streamed_is_refused(sets, photos, changes, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        module(sets, photos, **changes)
    assert "\n" not in str(caught.value)


def test_an_empty_set_is_refused(tmp_path, sets):
    empty = shards_module.write(tmp_path / "empty", [], lambda sample: b"", licence="", source="")
    with pytest.raises(InputError, match="empty holds no image"):
        module(sets, empty)


def copy_of(photos, folder):
    folder.mkdir()
    for path in photos.root.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return ShardSet.open(folder)


def test_a_missing_or_cut_shard_is_found_before_training(tmp_path, sets, photos):
    mine = copy_of(photos, tmp_path / "mine")
    shard = mine.root / mine.shards[2].file
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(InputError, match=r"photos-00002.tar has not the size that index.json says; prepare it again"):
        module(sets, mine).load()
    shard.unlink()
    with pytest.raises(InputError, match=r"photos-00002.tar is missing; prepare it again"):
        module(sets, mine).load()
    module(sets, photos).load()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cached", [False, True])
def test_a_shard_that_changed_ends_the_run_in_one_line(tmp_path, sets, photos, workers, cached):
    mine = copy_of(photos, tmp_path / "mine")
    for shard in mine.shards:
        data = bytearray((mine.root / shard.file).read_bytes())
        data[700] ^= 1
        (mine.root / shard.file).write_bytes(data)
    cache = str(tmp_path / "cache") if cached else None
    data = module(sets, mine, stream={"workers": workers, "cache": cache})
    with pytest.raises(InputError, match=r"photos-0000\d.tar.* its SHA-256 .*; prepare it again") as caught:
        first_pair(data)
    assert "\n" not in str(caught.value)
    assert not cached or list((tmp_path / "cache").iterdir()) == []


def test_disk_errors_of_a_worker_arrive_as_they_are(tmp_path, sets, photos):
    (tmp_path / "file").write_text("")
    data = module(sets, photos, stream={"workers": 1, "cache": str(tmp_path / "file" / "cache")})
    with pytest.raises(NotADirectoryError, match="cache"):
        first_pair(data)


def test_a_picture_of_another_size_than_the_index_says(tmp_path, sets, photos):
    mine = copy_of(photos, tmp_path / "mine")
    index = json.loads((mine.root / "index.json").read_text())
    for sample in index["samples"]:
        sample["height"] += 1
    (mine.root / "index.json").write_text(json.dumps(index))
    data = module(sets, ShardSet.open(mine.root))
    with pytest.raises(InputError, match=r"photos-0000\d.tar: photos-p\d\d is not of the size its index says"):
        first_pair(data)


@pytest.mark.parametrize("content", [b"no tar at all" * 100, b""])
def test_what_is_no_tar_is_refused(tmp_path, content):
    path = tmp_path / "x-00000.tar"
    path.write_bytes(content)
    source = Source(str(tmp_path))
    with (
        source.open(Shard(path.name, 1, len(content), sha256(content))) as file,
        pytest.raises(InputError, match=r"x-00000.tar is not a tar of plain files \(.+\): prepare it again"),
    ):
        list(images_in(file, path.name))


def test_links_in_a_tar_are_refused(tmp_path):
    import tarfile

    path = tmp_path / "x-00000.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with path.open("rb") as file, pytest.raises(InputError, match="something other than plain files is in it"):
        list(images_in(file, path.name))


# --- the cache ---


def test_the_cache_keeps_shards_by_checksum_and_mends_a_damaged_one(tmp_path, photos, caplog):
    mine, cache = copy_of(photos, tmp_path / "mine"), tmp_path / "deep" / "cache"
    source, shard = Source(str(mine.root), cache), mine.shards[1]
    original = (mine.root / shard.file).read_bytes()
    kept = cache / f"{shard.sha256}.tar"
    for _ in range(2):
        with source.open(shard) as file:
            file.seek(0)
            assert file.read() == original
        assert [path.name for path in cache.iterdir()] == [kept.name]
    kept.write_bytes(original[:1000])
    with source.open(shard):
        assert kept.read_bytes() == original
    assert f"shard {shard.file}: damaged in the cache {cache}, fetched again" in caplog.text
    (mine.root / shard.file).unlink()
    with source.open(shard) as file:  # no longer needed
        assert len(list(images_in(file, shard.file))) == shard.count
    (mine.root / mine.shards[0].file).unlink()
    with pytest.raises(InputError, match=r"photos-00000.tar is missing; prepare it again"):
        source.open(mine.shards[0])


def test_outside_a_worker_nothing_is_guarded():
    assert guard(0) is None
