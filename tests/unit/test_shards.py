import errno
import gc
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from vdsr import shards
from vdsr.errors import InputError
from vdsr.shards import CATALOGUE, DamagedError, Sample, ShardSet, describe, slug, with_unique_keys, write


@cache
def png(seed, size=(6, 5), kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def make(out, count=70, **changes):
    """`count` images of the set T, in three shards for 70."""
    files = {f"t{number}.png": png(number) for number in range(count)}
    samples = with_unique_keys(describe(data, "T", file) for file, data in files.items())
    arguments = {"licence": "free", "source": "made here", **changes}
    return write(out, samples, arguments.pop("read", lambda sample: files[sample.file]), **arguments)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make(tmp_path_factory.mktemp("template") / "demo").root


@pytest.fixture
def prepared(template, tmp_path):
    return ShardSet.open(shutil.copytree(template, tmp_path / "demo"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewrite_index(root, change):
    index = json.loads((root / "index.json").read_text())
    change(index)
    (root / "index.json").write_text(json.dumps(index))


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


# --- what is written ---


def test_index_counts_sizes_and_checksums(prepared):
    index = json.loads((prepared.root / "index.json").read_text())
    tars = [(prepared.root / f"demo-0000{n}.tar").read_bytes() for n in range(3)]
    digests = [hashlib.sha256(tar).hexdigest() for tar in tars]
    assert index["format"] == 1
    assert (index["name"], index["count"], index["licence"], index["source"]) == (
        "demo",
        70,
        "free",
        "made here",
    )
    assert index["bytes"] == sum(map(len, tars)) == prepared.total_bytes
    assert [shard["count"] for shard in index["shards"]] == [32, 32, 6]
    assert [shard["sha256"] for shard in index["shards"]] == digests
    assert index["checksum"] == hashlib.sha256("\n".join(digests).encode()).hexdigest()
    first = png(0)
    assert index["samples"][0] == {
        "key": "T-t0",
        "set": "T",
        "file": "t0.png",
        "width": 5,
        "height": 6,
        "mode": "RGB",
        "sha256_file": hashlib.sha256(first).hexdigest(),
        "sha256_pixels": hashlib.sha256(np.asarray(Image.open(io.BytesIO(first))).tobytes()).hexdigest(),
    }
    assert sorted(contents(prepared.root)) == [*(f"demo-0000{n}.tar" for n in range(3)), "index.json"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_a_shard(prepared):
    samples = list(webdataset.WebDataset(str(prepared.root / "demo-00002.tar"), shardshuffle=False))
    gc.collect()  # webdataset leaves the file to the garbage collector, which warns
    assert [sample["__key__"] for sample in samples] == [f"T-t{n}" for n in range(64, 70)]
    assert samples[0]["png"] == png(64)
    facts = json.loads(samples[0]["json"])
    assert set(facts) == {"name", "file", "set", "width", "height", "mode", "sha256_file", "sha256_pixels"}
    assert (facts["name"], facts["file"], facts["set"]) == ("t64", "t64.png", "T")


def test_tar_headers_say_nothing_of_the_machine(prepared):
    with tarfile.open(prepared.root / "demo-00000.tar") as tar:
        headers = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
    assert headers == {(0, 0, 0, "vdsr", "vdsr", 0o444)}


def test_same_images_give_the_same_bytes_elsewhere(prepared, tmp_path):
    assert contents(make(tmp_path / "there" / "demo").root) == contents(prepared.root)


def test_checksum_names_the_data(prepared, tmp_path):
    assert make(tmp_path / "b" / "demo", licence="other").checksum == prepared.checksum
    assert make(tmp_path / "c" / "demo", count=69).checksum != prepared.checksum


def test_extension_is_that_of_the_content(tmp_path):
    for kind, extension in [("JPEG", "jpg"), ("WEBP", "webp"), ("TIFF", "tiff"), ("BMP", "bmp")]:
        data = png(1, kind=kind)
        samples = with_unique_keys([describe(data, "T", "photo.png")])
        out = write(tmp_path / kind, samples, lambda _, data=data: data, licence="", source="").root
        with tarfile.open(out / f"{kind}-00000.tar") as tar:
            assert tar.getnames() == sorted([f"T-photo.{extension}", "T-photo.json"])
        assert next(ShardSet.open(out).read())[1] == data


def test_keys_are_plain_and_unique():
    files = [
        "a b.png",
        "a.b.png",
        "ü/日本.png",
        "ü/日本.jpg",
        "a-b-2.png",
        "x" * 200 + ".png",
        "x" * 200 + "y.png",
    ]
    blank = Sample("", "My Set", "", 1, 1, "L", "", "")
    keys = [sample.key for sample in with_unique_keys(replace(blank, file=file) for file in files)]
    assert keys[:5] == ["My-Set-a-b", "My-Set-a-b-2", "My-Set", "My-Set-2", "My-Set-a-b-2-2"]
    assert len(set(keys)) == len(keys)
    assert all(len(key) <= 90 and set(key) <= set(slug(key)) for key in keys)
    assert slug("日本") == "image"


def test_source_that_changes_meanwhile_is_named(tmp_path):
    with pytest.raises(InputError, match=r"T/t0\.png: changed while it was being read"):
        make(tmp_path / "demo", count=3, read=lambda sample: png(99))
    assert not (tmp_path / "demo").exists()


# --- interrupted, resumed, replaced ---


def test_killed_run_resumes_with_its_finished_shards(tmp_path):
    reads = []

    def dies_in_the_third_shard(sample):
        reads.append(sample.file)
        if len(reads) > 65:
            raise KeyboardInterrupt
        return png(int(sample.file[1:-4]))

    def survives(sample):
        reads.append(sample.file)
        return png(int(sample.file[1:-4]))

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "demo", read=dies_in_the_third_shard)
    assert not (tmp_path / "demo").exists()
    reads.clear()
    resumed = make(tmp_path / "demo", read=survives)
    assert reads == [f"t{n}.png" for n in range(64, 70)]
    assert not (tmp_path / "demo.partial").exists()
    assert contents(resumed.root) == contents(make(tmp_path / "fresh" / "demo").root)


@pytest.mark.parametrize("harm", ["shard", "note", "missing"])
def test_half_finished_shards_are_not_trusted(tmp_path, harm):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "demo", progress=_raise_interrupt)
    partial = tmp_path / "demo.partial"
    if harm == "shard":
        flip(partial / "demo-00000.tar", 700)
    elif harm == "note":
        (partial / "demo-00000.json").write_text("{")
    else:
        (partial / "demo-00000.tar").unlink()
    assert make(tmp_path / "demo").faults() == []


def test_remains_of_another_attempt_do_not_get_in(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "demo", progress=_raise_interrupt)
    (tmp_path / "demo.partial" / "demo-00009.tar").write_bytes(b"old")
    files = {f"u{n}.png": png(n + 500) for n in range(3)}
    samples = with_unique_keys(describe(data, "U", file) for file, data in files.items())
    out = write(tmp_path / "demo", samples, lambda s: files[s.file], licence="", source="")
    assert sorted(contents(out.root)) == ["demo-00000.tar", "index.json"]
    assert [image for _, image in out.read()] == list(files.values())


def _raise_interrupt(count):
    raise KeyboardInterrupt


def test_new_folder_replaces_the_old_one(prepared):
    new = make(prepared.root, count=5)
    assert [sample.file for sample, _ in new.read()] == [f"t{n}.png" for n in range(5)]
    assert sorted(path.name for path in prepared.root.parent.iterdir()) == ["demo"]


def test_full_disk_leaves_the_old_folder_as_it_was(prepared, monkeypatch):
    before = contents(prepared.root)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make(prepared.root, count=5)
    assert contents(prepared.root) == before


# --- reading ---


def test_read_gives_the_images_in_order(prepared):
    read = list(ShardSet.open(prepared.root).read())
    assert [sample.file for sample, _ in read] == [f"t{n}.png" for n in range(70)]
    assert [sample.name for sample, _ in read[:2]] == ["t0", "t1"]
    assert all(image == png(n) for n, (_, image) in enumerate(read))


def test_open_equals_what_was_written(prepared):
    assert ShardSet.open(prepared.root) == prepared
    assert prepared.faults() == []


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("data/set5", "`python data_prep/prepare.py dataset=set5`"),
        ("data/sample_val", "`python data_prep/prepare.py dataset=sample`"),
        ("elsewhere/b100", "`python data_prep/prepare.py dataset=b100 paths.data=elsewhere`"),
        ("data/mine", "`python data_prep/prepare.py dataset=folder source=DIR name=mine`"),
    ],
)
def test_no_shards_yet_names_the_command(tmp_path, monkeypatch, folder, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        ShardSet.open(Path(folder))
    assert str(caught.value) == f"no shards in {folder}; make them with {expected}"


def test_catalogue_is_that_of_the_configs():
    names = {path.stem for path in (Path(__file__).parents[2] / "conf" / "dataset").glob("*.yaml")}
    assert names == {*CATALOGUE, "folder"}


def test_newer_format_is_refused(prepared):
    rewrite_index(prepared.root, lambda index: index.update(format=2))
    with pytest.raises(InputError, match="index has format 2, newer than 1; update this program") as caught:
        ShardSet.open(prepared.root)
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda i: i.pop("shards"), "lacks or mistypes something ('shards')"),
        (lambda i: i.update(format="1"), "lacks or mistypes"),
        (lambda i: i.update(count=71), "counts its images differently"),
        (lambda i: i["samples"].pop(), "counts its images differently"),
        (lambda i: i["samples"][0].update(width="5"), "width of 't0.png'"),
        (lambda i: i["samples"][0].update(more=1), "unexpected keyword argument 'more'"),
        (lambda i: i["shards"][0].update(sha256="0" * 64), "its checksum is not that of its shards"),
        (lambda i: i["shards"][0].update(file="../demo.tar"), "impossible shard '../demo.tar'"),
        (lambda i: i["shards"][0].update(bytes=1 << 60), "impossible shard"),
    ],
)
def test_damaged_index(prepared, change, fault):
    rewrite_index(prepared.root, change)
    with pytest.raises(DamagedError) as caught:
        ShardSet.open(prepared.root)
    assert fault in str(caught.value)
    assert "prepare it again with `python data_prep/prepare.py" in str(caught.value)


@pytest.mark.parametrize("text", [b"", b'{"format": 1', b"\xff\xfe", b"[]", b"null"])
def test_index_that_is_no_index(prepared, text):
    (prepared.root / "index.json").write_bytes(text)
    with pytest.raises(DamagedError, match=r"index\.json"):
        ShardSet.open(prepared.root)


# --- damage: read() refuses it, faults() lists it ---


def missing(root):
    (root / "demo-00001.tar").unlink()
    return "demo-00001.tar is missing"


def truncated(root):
    path = root / "demo-00001.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1000])
    return f"demo-00001.tar is truncated: {size - 1000} of {size} bytes"


def too_long(root):
    path = root / "demo-00001.tar"
    path.write_bytes(path.read_bytes() + b"\0")
    return "demo-00001.tar is too long"


def flipped(root):
    path = root / "demo-00001.tar"
    flip(path, path.read_bytes().index(png(40)) + 60)
    return "demo-00001.tar was changed: its SHA-256 differs; damaged: T/t40.png"


def flipped_header(root):
    flip(root / "demo-00001.tar", 150)  # within the first header's checksum
    return "demo-00001.tar was changed: its SHA-256 differs; damaged: T/t32.png, T/t33.png"


def flipped_padding(root):
    flip(root / "demo-00001.tar", (root / "demo-00001.tar").stat().st_size - 1)
    return "demo-00001.tar was changed: its SHA-256 differs; damaged: none of its images"


def stranger(root):
    (root / "extra.tar").write_bytes(b"")
    return "extra.tar is not in index.json"


@pytest.mark.parametrize("damage", [missing, truncated, too_long, flipped, flipped_header, flipped_padding, stranger])
def test_damage_is_named(prepared, damage):
    expected = damage(prepared.root)
    for thorough in (True, False):
        (fault,) = prepared.faults(decode_images=thorough)
        assert fault.startswith(expected)
    with pytest.raises(DamagedError) as caught:
        list(prepared.read())
    assert expected.split("; damaged")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_fault_is_listed(prepared):
    stranger(prepared.root)
    flipped(prepared.root)
    (prepared.root / "demo-00002.tar").unlink()
    assert len(prepared.faults()) == 3


def test_good_shards_before_the_damaged_one_are_read(prepared):
    truncated(prepared.root)
    reader = prepared.read()
    assert [next(reader)[0].file for _ in range(32)][-1] == "t31.png"
    with pytest.raises(DamagedError):
        next(reader)


def reindex(root, data):
    """Make the last shard `data`, with an index that agrees."""
    (root / "demo-00002.tar").write_bytes(data)

    def change(index):
        index["shards"][2].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        joined = "\n".join(shard["sha256"] for shard in index["shards"])
        index["checksum"] = hashlib.sha256(joined.encode()).hexdigest()

    rewrite_index(root, change)
    return ShardSet.open(root)


def tar_of(*members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def link():
    info = tarfile.TarInfo("T-t64.png")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (tar_of((link(), b"")), "is not a tar of plain files"),
        (tar_of((tarfile.TarInfo("T-t64.png"), b"x"), mode="w:gz"), "is not a tar of plain files"),
        (
            tar_of((tarfile.TarInfo("a.png"), b"1"), (tarfile.TarInfo("a.png"), b"2")),
            "is not a tar of plain files",
        ),
        (b"", "is not a tar of plain files"),
        (tar_of((tarfile.TarInfo("T-other.png"), b"x")), "holds other images than index.json says"),
        (tar_of((tarfile.TarInfo("../T-t64.png"), b"x")), "holds other images than index.json says"),
    ],
)
def test_crafted_shard_with_an_agreeing_index(prepared, data, fault):
    crafted = reindex(prepared.root, data)
    assert [fault in line for line in crafted.faults()] == [True]
    with pytest.raises(DamagedError, match=fault):
        list(crafted.read())


def test_images_that_are_not_those_of_the_index(prepared):
    bodies = [png(64)[:-30], png(999), png(66), png(67), png(68), png(69)]
    members = [(tarfile.TarInfo(f"T-t{n}.png"), body) for n, body in enumerate(bodies, 64)]
    assert reindex(prepared.root, tar_of(*members)).faults() == [
        "demo-00002.tar: T/t64.png: does not decode, damaged or truncated (image file is truncated);"
        " copy or download it again",
        "demo-00002.tar: T/t65.png: decodes to other pixels than index.json says",
    ]


def test_sample_without_an_image(prepared):
    members = [(tarfile.TarInfo(f"T-t{n}.{'json' if n == 64 else 'png'}"), png(n)) for n in range(64, 70)]
    (fault,) = reindex(prepared.root, tar_of(*members)).faults()
    assert fault.startswith("demo-00002.tar: T/t64.png: is empty (0 bytes)")


def test_looking_at_a_folder_does_not_import_torch():
    code = "import sys, vdsr.shards, vdsr.images; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", *filter(None, sys.path)])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
