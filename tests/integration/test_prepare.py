import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from data_prep import fetch, jobs, prepare, sources
from vdsr import shards
from vdsr.errors import InputError
from vdsr.shards import ShardSet

ROOT = Path(__file__).parents[2]


def pixels(seed, height=48, width=50):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def row(set_name, file, data):
    with Image.open(io.BytesIO(data)) as image:
        rgb = hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
        return f"{set_name}\t{file}\t{image.mode}\t{hashlib.sha256(data).hexdigest()}\t{rgb}\n"


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Three small sets with their checksums in place of the real ones: set → file → bytes."""
    sets = {
        "T91": {f"t{n}.png": encode(pixels(n)) for n in range(1, 13)},
        "BSD200": {f"{n}.jpg": encode(pixels(n), "JPEG") for n in range(100, 160)},
        "Set5": {f"{name}.png": encode(pixels(n)) for n, name in enumerate(["baby", "bird", "head"], 200)},
    }
    sets["Set5"]["bridge.png"] = encode(pixels(9)[..., 0])
    table = tmp_path / "checksums.tsv"
    lines = [row(name, file, data) for name, files in sets.items() for file, data in files.items()]
    table.write_text("set\tfile\tmode\tsha256_file\tsha256_rgb\n" + "".join(lines))
    monkeypatch.setattr(sources, "CHECKSUMS", table)
    sources._checksums.cache_clear()
    yield sets
    sources._checksums.cache_clear()


@pytest.fixture
def source(published, tmp_path):
    return lay(tmp_path / "source", published)


def lay(root, sets):
    for name, files in sets.items():
        for file, data in files.items():
            path = root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


@cache
def composed(dataset):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("prepare", overrides=[dataset])


def config(*overrides):
    """As the command line composes it, for `dataset=…` and any other values."""
    (dataset,) = [override for override in overrides if override.startswith("dataset=")]
    values = [override for override in overrides if override != dataset]
    cfg = OmegaConf.merge(composed(dataset), OmegaConf.from_dotlist(values))
    counts = {"T91": 12, "BSD200": 60, "Set5": 4}
    for name, part in cfg.dataset.get("parts", {}).items():
        part.count = counts.get(name, part.count)
    return cfg


def run(data, *overrides):
    prepare.run(config(f"paths.data={data}", *overrides))


def refused(data, *overrides):
    with pytest.raises(InputError) as caught:
        run(data, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- local copies of published sets ---


def test_train291_from_local_folders(published, source, tmp_path, capsys):
    run(tmp_path / "data", "dataset=train291", f"source={source}")
    prepared = ShardSet.open(tmp_path / "data" / "train291")
    assert [sample.file for sample in prepared.samples][:3] == ["t1.png", "t2.png", "t3.png"]
    assert [sample.set for sample in prepared.samples] == ["T91"] * 12 + ["BSD200"] * 60
    assert [shard.count for shard in prepared.shards] == [32, 32, 8]
    assert all(data == published[sample.set][sample.file] for sample, data in prepared.read())
    assert "non-commercial research" in prepared.licence
    assert "Yang et al. 2010" in prepared.source
    size = f"{prepared.total_bytes / 1e6:.1f} MB, checksum {prepared.checksum[:16]}"
    expected = f"{prepared.root}: 72 images (T91 12, BSD200 60) in 3 shards, {size}\n"
    assert capsys.readouterr().out == f"wrote {expected}"


def test_bytes_depend_on_the_images_alone(published, source, tmp_path):
    run(tmp_path / "a", "dataset=train291", f"source={source}")
    backwards = {name: dict(reversed(files.items())) for name, files in reversed(published.items())}
    other = lay(tmp_path / "other", backwards)
    for path in other.rglob("*.*"):
        os.utime(path, (1, 1))
    run(tmp_path / "b", "dataset=train291", f"source={other}")
    assert contents(tmp_path / "a" / "train291") == contents(tmp_path / "b" / "train291")
    assert str(tmp_path).encode() not in b"".join(contents(tmp_path / "a" / "train291").values())


def test_second_run_finds_it_in_place_without_decoding(source, tmp_path, capsys, monkeypatch):
    run(tmp_path, "dataset=train291", f"source={source}")
    first = capsys.readouterr().out
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "train291").iterdir()}
    monkeypatch.setattr(shards, "decode", lambda *_: pytest.fail("decoded"))
    run(tmp_path, "dataset=train291", f"source={source}")
    assert capsys.readouterr().out == first.replace("wrote", "in place:")
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "train291").iterdir()}


@pytest.mark.parametrize("folder", ["set5", "Set5_HR"])
def test_folder_names_people_use(source, tmp_path, folder):
    (source / "Set5").rename(source / folder)
    run(tmp_path, "dataset=set5", f"source={source}")
    assert ShardSet.open(tmp_path / "set5").count == 4


def test_source_may_be_the_set_itself(source, tmp_path):
    run(tmp_path, "dataset=set5", f"source={source / 'Set5'}", "name=five")
    prepared = ShardSet.open(tmp_path / "five")
    assert (prepared.name, prepared.count) == ("five", 4)
    assert [sample.mode for sample in prepared.samples] == ["RGB", "RGB", "L", "RGB"]


def test_other_format_and_name_are_known_by_their_pixels(published, source, tmp_path):
    folder = source / "Set5"
    (folder / "baby.png").unlink()
    (folder / "img_001.bmp").write_bytes(encode(pixels(200), "BMP"))
    (folder / "bird.png").write_bytes(encode(pixels(201), compress_level=1))
    (folder / "LR_bicubic").mkdir()
    (folder / "LR_bicubic" / "baby.png").write_bytes(encode(pixels(1)))
    run(tmp_path, "dataset=set5", f"source={source}")
    read = {sample.file: data for sample, data in ShardSet.open(tmp_path / "set5").read()}
    assert list(read) == ["baby.png", "bird.png", "bridge.png", "head.png"]
    assert read["baby.png"] == encode(pixels(200), "BMP")
    assert read["bird.png"] != published["Set5"]["bird.png"]


def test_the_published_file_is_preferred_to_a_copy(published, source, tmp_path):
    (source / "Set5" / "a.bmp").write_bytes(encode(pixels(200), "BMP"))
    (source / "Set5" / "z.bmp").write_bytes(encode(pixels(200), "BMP"))
    run(tmp_path, "dataset=set5", f"source={source}")
    assert next(ShardSet.open(tmp_path / "set5").read())[1] == published["Set5"]["baby.png"]


def test_missing_image_is_named(source, tmp_path):
    (source / "T91" / "t7.png").unlink()
    assert "T91 in" in (text := refused(tmp_path, "dataset=train91", f"source={source}"))
    assert text.endswith("t7.png is missing")
    assert not (tmp_path / "train91").exists()


@pytest.mark.parametrize(
    "other", [encode(pixels(1)), b"", encode(pixels(201))[:500], encode(pixels(201)[:-1])], ids=len
)
def test_different_image_is_named(source, tmp_path, other):
    (source / "Set5" / "bird.png").write_bytes(other)
    assert refused(tmp_path, "dataset=set5", f"source={source}").endswith("bird.png is not the published image")


def test_grey_image_stored_as_colour_is_not_the_published_one(source, tmp_path):
    grey = np.repeat(pixels(9)[..., :1], 3, axis=2)
    (source / "Set5" / "bridge.png").write_bytes(encode(grey))
    assert refused(tmp_path, "dataset=set5", f"source={source}").endswith("bridge.png is not the published image")


def test_many_missing_images_are_counted(source, tmp_path):
    for path in (source / "T91").iterdir():
        path.unlink()
    text = refused(tmp_path, "dataset=train91", f"source={source}")
    assert text.endswith("t1.png is missing, t2.png is missing, t3.png is missing and 9 more")


def test_set_without_checksums_is_counted(published, tmp_path):
    files = {f"img{n}.png": encode(pixels(n, 4, 4)) for n in range(100)}
    source = lay(tmp_path / "source", {"Urban100": files})
    run(tmp_path, "dataset=urban100", f"source={source}")
    names = [sample.file for sample in ShardSet.open(tmp_path / "urban100").samples]
    assert names == [f"img{n}.png" for n in range(100)]
    (source / "Urban100" / "img5.png").unlink()
    assert "99 images in" in refused(tmp_path, "dataset=urban100", f"source={source}", "name=again")


def test_set_folder_missing(source, tmp_path):
    text = refused(tmp_path, "dataset=train291", f"source={source / 'T91'}")
    assert "has no folder T91 (or T91, Train91" in text


@pytest.mark.parametrize("dataset", ["set5", "folder"])
def test_source_that_is_no_folder(source, tmp_path, dataset):
    assert "does not exist; give a folder" in refused(tmp_path, f"dataset={dataset}", f"source={tmp_path}/none")
    file = source / "Set5" / "bird.png"
    assert "is a file; give a folder" in refused(tmp_path, f"dataset={dataset}", f"source={file}")


# --- what is already there ---


def test_other_content_needs_overwrite(published, source, tmp_path):
    run(tmp_path, "dataset=train91", f"source={source}", "name=x")
    before = contents(tmp_path / "x")
    text = refused(tmp_path, "dataset=set5", f"source={source}", "name=x")
    assert text == f"{tmp_path / 'x'} holds something else; give overwrite=true or another name="
    assert contents(tmp_path / "x") == before
    run(tmp_path, "dataset=set5", f"source={source}", "name=x", "overwrite=true")
    assert ShardSet.open(tmp_path / "x").count == 4


def test_damaged_shards_are_named_and_prepared_anew(source, tmp_path, capsys):
    run(tmp_path, "dataset=train291", f"source={source}")
    before = contents(tmp_path / "train291")
    (tmp_path / "train291" / "train291-00001.tar").write_bytes(b"x")
    (tmp_path / "train291" / "train291-00002.tar").unlink()
    capsys.readouterr()
    run(tmp_path, "dataset=train291", f"source={source}")
    lines = capsys.readouterr().out.splitlines()
    assert "train291-00001.tar is truncated: 1 of" in lines[0]
    assert lines[1].endswith("is damaged: train291-00002.tar is missing")
    assert lines[2].endswith("is prepared anew")
    assert contents(tmp_path / "train291") == before


def test_damaged_index_is_prepared_anew(source, tmp_path, capsys):
    run(tmp_path, "dataset=set5", f"source={source}")
    before = contents(tmp_path / "set5")
    (tmp_path / "set5" / "index.json").write_text("{")
    run(tmp_path, "dataset=set5", f"source={source}")
    assert "is damaged: index.json is not JSON; it is prepared anew" in capsys.readouterr().out
    assert contents(tmp_path / "set5") == before


def test_newer_index_needs_overwrite(source, tmp_path):
    run(tmp_path, "dataset=set5", f"source={source}")
    index = tmp_path / "set5" / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 9}))
    assert "newer than 1" in refused(tmp_path, "dataset=set5", f"source={source}")
    run(tmp_path, "dataset=set5", f"source={source}", "overwrite=true")
    assert ShardSet.open(tmp_path / "set5").faults() == []


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_a_folder_with_other_files_is_never_replaced(source, tmp_path, overwrite):
    text = refused(source, "dataset=folder", f"source={source / 'Set5'}", "name=Set5", f"overwrite={overwrite}")
    assert "Set5 holds other files (baby.png); move them away" in text
    assert (source / "Set5" / "baby.png").exists()


def test_tars_of_unknown_origin_need_overwrite(source, tmp_path):
    lay(tmp_path, {"set5": {"mine.tar": b"x"}})
    assert "has tars without index.json" in refused(tmp_path, "dataset=set5", f"source={source}")
    run(tmp_path, "dataset=set5", f"source={source}", "overwrite=true")
    assert "mine.tar" not in contents(tmp_path / "set5")


def test_empty_folder_is_used_and_a_file_is_not(source, tmp_path):
    (tmp_path / "set5").mkdir()
    run(tmp_path, "dataset=set5", f"source={source}")
    (tmp_path / "a").write_text("")
    assert "is a file; give another name=" in refused(tmp_path, "dataset=set5", f"source={source}", "name=a")


def test_name_stays_inside_the_data_folder(source, tmp_path):
    assert "name=../x must consist of" in refused(tmp_path / "data", "dataset=set5", f"source={source}", "name=../x")


def test_killed_run_resumes(source, tmp_path, monkeypatch):
    written = []
    real = shards._write_file

    def dies_after_two_shards(path, data):
        if len(written) == 4:  # two shards and their notes
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, data)

    monkeypatch.setattr(shards, "_write_file", dies_after_two_shards)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "dataset=train291", f"source={source}")
    assert not (tmp_path / "train291").exists()
    written.clear()
    run(tmp_path, "dataset=train291", f"source={source}")
    assert written == ["train291-00002.tar", "train291-00002.json", "index.json"]
    assert ShardSet.open(tmp_path / "train291").faults() == []


def test_two_runs_at_the_same_time_write_it_once(published, source, tmp_path, capsys):
    cfg = config(f"paths.data={tmp_path}", "dataset=train291", f"source={source}")
    with ThreadPoolExecutor() as pool:
        list(pool.map(prepare.run, [cfg] * 3))
    assert sorted(line.split()[0] for line in capsys.readouterr().out.splitlines()) == ["in", "in", "wrote"]
    assert ShardSet.open(tmp_path / "train291").faults() == []


def test_finished_folder_needs_no_permission_to_write(source, tmp_path, monkeypatch, capsys):
    run(tmp_path, "dataset=set5", f"source={source}")
    monkeypatch.setattr(prepare, "FileLock", lambda path: pytest.fail("wrote"))
    run(tmp_path, "dataset=set5", f"source={source}")
    assert "in place: " in capsys.readouterr().out


# --- anybody's own images ---


@pytest.fixture
def album(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "a/one.png": encode(pixels(1)),
        "a/two.JPG": encode(pixels(2), "JPEG", exif=exif),
        "a/three.webp": encode(pixels(3), "WEBP"),
        "four.tif": encode(pixels(4), "TIFF"),
        "five.bmp": encode(pixels(5), "BMP"),
        "six": encode(pixels(6)),
        "grey 16.png": encode(np.full((41, 41), 0x8000, dtype=np.uint16)),
        "alpha.png": encode(Image.fromarray(pixels(7)).convert("RGBA")),
        "palette.png": encode(Image.fromarray(pixels(8)).quantize(16)),
        "small.png": encode(pixels(9, 40, 90)),
        "cmyk.jpg": encode(Image.fromarray(pixels(10)).convert("CMYK"), "JPEG"),
        "moving.webp": encode(
            Image.fromarray(pixels(1)), "WEBP", save_all=True, append_images=[Image.fromarray(pixels(2))]
        ),
        "empty.png": b"",
        "cut.png": encode(pixels(11))[:900],
        "notes.txt": b"hello",
    }
    return lay(tmp_path, {"my album": files}) / "my album"


def test_own_images(album, tmp_path, capsys):
    run(tmp_path / "data", "dataset=folder", f"source='{album}'")
    prepared = ShardSet.open(tmp_path / "data" / "my-album")
    assert {sample.file: (sample.height, sample.width, sample.mode) for sample in prepared.samples} == {
        "a/one.png": (48, 50, "RGB"),
        "a/three.webp": (48, 50, "RGB"),
        "a/two.JPG": (50, 48, "RGB"),
        "alpha.png": (48, 50, "RGB"),
        "five.bmp": (48, 50, "RGB"),
        "four.tif": (48, 50, "RGB"),
        "grey 16.png": (41, 41, "L"),
        "palette.png": (48, 50, "RGB"),
        "six": (48, 50, "RGB"),
    }
    assert prepared.samples[0].key == "my-album-a-one"
    *lines, count, wrote = capsys.readouterr().out.splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "left out cmyk.jpg: has colour mode CMYK",
        "left out cut.png: does not decode, damaged or truncated (image file is truncated)",
        "left out empty.png: is empty (0 bytes)",
        "left out moving.webp: is animated or has several pages (2)",
        "left out notes.txt: is not a PNG, JPEG, WebP, TIFF or BMP image",
        "left out small.png: 90×40 is smaller than 41×41 (min_size)",
    ]
    assert count == "left out 6 of 15 files"
    assert wrote.startswith(f"wrote {prepared.root}: 9 images (my-album 9) in 1 shard, ")
    assert prepared.faults() == []
    run(tmp_path / "data", "dataset=folder", f"source='{album}'")
    assert capsys.readouterr().out.splitlines()[-1].startswith("in place: ")


def test_min_size_and_name(album, tmp_path):
    run(tmp_path, "dataset=folder", f"source='{album}'", "min_size=1", "name=mine")
    assert "small.png" in [sample.file for sample in ShardSet.open(tmp_path / "mine").samples]


def test_changed_source_needs_overwrite(album, tmp_path):
    run(tmp_path, "dataset=folder", f"source='{album}'", "name=mine")
    (album / "six").write_bytes(encode(pixels(77)))
    assert "holds something else" in refused(tmp_path, "dataset=folder", f"source='{album}'", "name=mine")


@pytest.mark.parametrize("files", [{}, {"a.txt": b"x"}, {"a.png": b""}])
def test_folder_without_usable_images(tmp_path, files):
    (tmp_path / "bare").mkdir()
    lay(tmp_path, {"bare": files})
    assert "has no usable image" in refused(tmp_path / "data", "dataset=folder", f"source={tmp_path / 'bare'}")
    assert not (tmp_path / "data" / "bare").exists()


def test_folder_needs_a_source(tmp_path):
    assert refused(tmp_path, "dataset=folder").startswith("dataset=folder needs source=DIR")


# --- public addresses ---


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "www"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        httpd.folder, httpd.url = folder, f"http://127.0.0.1:{httpd.server_port}"
        yield httpd
        httpd.shutdown()
        thread.join()


def tgz(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("Set5/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("Set5/", b"")
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def get(data, *archives):
    cfg = config(f"paths.data={data}", "dataset=set5")
    cfg.dataset.parts.Set5.archives = [
        {"url": url, "checksum": checksum and f"sha256:{checksum}"} for url, checksum in archives
    ]
    prepare.run(cfg)


@pytest.mark.parametrize("pack", [tgz, zipped])
def test_fetched_archive(published, server, tmp_path, pack, capsys):
    members = {f"x/Set5/{file}": data for file, data in published["Set5"].items()}
    members |= {"x/Set5/LR_bicubic/baby.png": encode(pixels(5)), "readme.txt": b"hi", "x/Other/o.png": b"x"}
    archive = pack(members)
    (server.folder / "five").write_bytes(archive)
    get(tmp_path / "data", (f"{server.url}/five", hashlib.sha256(archive).hexdigest()))
    prepared = ShardSet.open(tmp_path / "data" / "set5")
    assert {sample.file: data for sample, data in prepared.read()} == published["Set5"]
    assert capsys.readouterr().out.startswith(f"Set5: fetching {server.url}/five\nwrote ")
    downloads = list((tmp_path / "data" / "downloads").iterdir())
    assert [path.name.endswith("five") for path in downloads] == [True]


def test_second_run_needs_no_network(published, server, tmp_path, capsys):
    (server.folder / "five").write_bytes(tgz(published["Set5"]))
    get(tmp_path, (f"{server.url}/five", None))
    capsys.readouterr()
    get(tmp_path, ("http://127.0.0.1:9/none", None))
    assert capsys.readouterr().out.startswith("in place: ")


def test_other_set_under_that_name_is_not_taken_for_it(published, server, source, tmp_path):
    run(tmp_path, "dataset=train91", f"source={source}", "name=set5")
    (server.folder / "five").write_bytes(tgz(published["Set5"]))
    with pytest.raises(InputError, match="holds something else"):
        get(tmp_path, (f"{server.url}/five", None))


def test_next_address_is_tried(published, server, tmp_path):
    (server.folder / "wrong").write_bytes(b"other")
    (server.folder / "part").write_bytes(tgz({"Set5/baby.png": published["Set5"]["baby.png"]}))
    (server.folder / "good").write_bytes(tgz({f"Set5/{f}": d for f, d in published["Set5"].items()}))
    bad = [(f"{server.url}/gone", None), (f"{server.url}/wrong", "0" * 64), (f"{server.url}/part", None)]
    get(tmp_path, *bad, (f"{server.url}/good", None))
    assert ShardSet.open(tmp_path / "set5").count == 4


def test_all_addresses_fail_in_one_line(published, server, tmp_path):
    (server.folder / "wrong").write_bytes(b"other")
    (server.folder / "broken").write_bytes(tgz(published["Set5"])[:3000])
    (server.folder / "text").write_bytes(b"<html>moved</html>")
    urls = [f"{server.url}/{name}" for name in ["gone", "wrong", "broken", "text"]]
    with pytest.raises(InputError) as caught:
        get(
            tmp_path,
            (urls[0], None),
            (urls[1], "0" * 64),
            (urls[2], None),
            (urls[3], None),
            ("http://127.0.0.1:9/", None),
        )
    text = str(caught.value)
    assert "\n" not in text
    for reason in [
        f"404 Client Error: File not found for url: {urls[0]}",
        f"{urls[1]} has another checksum than published",
        "broken is not a whole zip or tar archive",
        "text is not a whole zip or tar archive",
        "127.0.0.1:9 cannot be reached (ConnectionError)",
        "give local copies with source=DIR",
    ]:
        assert reason in text
    assert not (tmp_path / "set5").exists()


@pytest.mark.parametrize("pack", [tgz, zipped])
def test_members_with_hostile_paths_write_nothing(published, server, tmp_path, pack):
    members = {f"../../Set5/{file}": data for file, data in published["Set5"].items()}
    (server.folder / "five").write_bytes(pack(members | {"/abs/Set5/x.png": b"x", "../../evil.png": b"x"}))
    before = set(tmp_path.rglob("*"))
    get(tmp_path / "a" / "b" / "c", (f"{server.url}/five", None))
    new = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} - {
        str(path.relative_to(tmp_path)) for path in before
    }
    assert {Path(path).parent.as_posix() for path in new} == {"a/b/c", "a/b/c/downloads", "a/b/c/set5"}


def test_absurdly_large_archives(published, server, tmp_path, monkeypatch):
    (server.folder / "five").write_bytes(tgz(published["Set5"]))
    monkeypatch.setattr(fetch, "MAX_ARCHIVE_BYTES", 10_000)
    with pytest.raises(InputError, match="GiB of images"):
        get(tmp_path, (f"{server.url}/five", None))
    monkeypatch.setattr(fetch, "MAX_MEMBER_BYTES", 5_000)
    with pytest.raises(InputError, match=r"baby\.png is missing"):
        get(tmp_path, (f"{server.url}/five", None))


def test_full_disk_while_downloading_is_not_a_dead_address(server, published, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetch.pooch, "retrieve", full)
    with pytest.raises(OSError, match="No space left"):
        get(tmp_path, (f"{server.url}/five", None))


# --- embedded photographs ---


def test_sample_is_embedded_and_held_out_apart(tmp_path, capsys):
    prepare.ensure_sample(tmp_path)
    train, val = ShardSet.open(tmp_path / "sample"), ShardSet.open(tmp_path / "sample_val")
    cfg = config("dataset=sample")
    assert [sample.file for sample in train.samples] == list(cfg.dataset.train)
    assert [sample.file for sample in val.samples] == list(cfg.dataset.val)
    assert not {s.sha256_pixels for s in train.samples} & {s.sha256_pixels for s in val.samples}
    for prepared in (train, val):
        assert prepared.faults() == []
        assert all(f"{sample.file}: " in prepared.licence for sample in prepared.samples)
    assert capsys.readouterr().out.count("wrote") == 2
    prepare.ensure_sample(tmp_path)
    assert capsys.readouterr().out == ""
    run(tmp_path, "dataset=sample")
    assert capsys.readouterr().out.count("in place") == 2
    (tmp_path / "sample_val" / "index.json").unlink()
    for path in (tmp_path / "sample_val").iterdir():
        path.unlink()
    prepare.ensure_sample(tmp_path)
    assert ShardSet.open(tmp_path / "sample_val") == val


def test_photograph_that_scikit_image_lacks(tmp_path):
    cfg = config(f"paths.data={tmp_path}", "dataset=sample")
    cfg.dataset.train = {"none.png": "x"}
    with pytest.raises(InputError, match=r"none\.png is not in scikit-image's"):
        prepare.run(cfg)


def test_photograph_that_does_not_decode(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.png").write_bytes(b"")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match=r"sample/x\.png: is empty"):
        sources.embedded("sample", ["x.png"], {})


# --- the real catalogue ---


def test_catalogue_is_whole():
    sources._checksums.cache_clear()
    counts = {}
    for name in ("train91", "train291", "set5", "set14", "b100", "urban100"):
        cfg = composed(f"dataset={name}")
        for key, part in cfg.dataset.parts.items():
            made = prepare._part(key, part)
            counts[key] = (made.count, len(made.known))
            assert made.licence
            assert made.archives
        assert cfg.dataset.name == name
    assert counts == {
        "T91": (91, 91),
        "BSD200": (200, 200),
        "Set5": (5, 5),
        "Set14": (14, 14),
        "B100": (100, 100),
        "Urban100": (100, 0),
    }
    modes = {file: row["mode"] for file, row in sources._checksums()["Set14"].items()}
    assert [file for file, mode in modes.items() if mode == "L"] == ["bridge.png"]


# --- the command itself ---


def command(*arguments, **environment):
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(ROOT / "data_prep" / "prepare.py"), *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_prints_one_line_and_leaves_nothing_about(album, tmp_path):
    done = command("dataset=folder", f"source='{album}'", f"paths.data={tmp_path}/data", "name=mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"wrote {tmp_path}/data/mine: 9 images")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".mine.lock", "mine"]
    failed = command("dataset=folder", f"source={tmp_path}/none", f"paths.data={tmp_path}/data")
    assert failed.returncode == 1
    assert failed.stderr == f"error: source={tmp_path}/none does not exist; give a folder with images\n"


def test_output_folder_that_cannot_be_made(album, tmp_path):
    (tmp_path / "file").write_text("")
    failed = command("dataset=folder", f"source='{album}'", f"paths.data={tmp_path}/file/data", "name=mine")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert f"{tmp_path}/file/data" in failed.stderr
    assert "Not a directory" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_imports_no_torch_and_no_lightning():
    heavy = "{'torch', 'pytorch_lightning'}"
    code = f"import sys, data_prep.prepare; sys.exit(bool({heavy} & set(sys.modules)))"
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}).returncode == 0


# --- by several jobs ---


@pytest.fixture
def send(tmp_path, command):
    """`prepare.py -m` in this process, its jobs one after the other."""

    return lambda *words: command(tmp_path, "data_prep/prepare.py", "-m", *words)


@pytest.mark.parametrize("parts", [1, 5])
def test_jobs_make_the_same_bytes(album, send, tmp_path, parts):
    for number in range(64):
        (album / f"more{number}.png").write_bytes(encode(pixels(number, 44, 41)))
    run(tmp_path / "one", "dataset=folder", f"source='{album}'", "name=mine")
    done = send("dataset=folder", f"source='{album}'", "name=mine", "paths.data=many", f"parts={parts}")
    assert done.status == 0, done.err
    assert contents(tmp_path / "one" / "mine") == contents(tmp_path / "many" / "mine")
    assert len(contents(tmp_path / "many" / "mine")) == 4
    assert not (tmp_path / "many" / ".mine.checked").exists()


def test_the_last_step_neither_decodes_nor_reads_images(source, tmp_path, monkeypatch):
    cfg = ["dataset=train291", f"source={source}", f"paths.data={tmp_path}/data", "parts=2"]
    for stage in ("check", "pack"):
        for part in range(2):
            prepare.run_share(config(*cfg, f"stage={stage}", f"part={part}"))
    monkeypatch.setattr(sources, "describe", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(shards, "_pack", lambda *_: pytest.fail("packed"))
    monkeypatch.setattr(sources, "sha256", lambda data: pytest.fail("read"))
    jobs.Index().on_multirun_end(config(*cfg))
    assert ShardSet.open(tmp_path / "data" / "train291").faults() == []


def test_a_job_that_was_lost_is_made_up_for(source, tmp_path):
    cfg = ["dataset=train291", f"source={source}", "parts=2"]
    for stage in ("check", "pack"):
        prepare.run_share(config(*cfg, f"paths.data={tmp_path}/data", f"stage={stage}", "part=1"))
    jobs.Index().on_multirun_end(config(*cfg, f"paths.data={tmp_path}/data"))
    run(tmp_path / "one", "dataset=train291", f"source={source}")
    assert contents(tmp_path / "one" / "train291") == contents(tmp_path / "data" / "train291")


def test_an_image_that_changes_between_check_and_pack(source, tmp_path):
    cfg = ["dataset=set5", f"source={source}", f"paths.data={tmp_path}/data", "parts=1", "part=0"]
    prepare.run_share(config(*cfg, "stage=check"))
    (source / "Set5" / "head.png").write_bytes(encode(pixels(77)))
    with pytest.raises(InputError, match=r"Set5/head\.png: changed while it was being read; run again"):
        prepare.run_share(config(*cfg, "stage=pack"))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["dataset=set5"], "jobs can share the work on local images only: give source=DIR"),
        (["dataset=set5", "source=nowhere"], "source=nowhere does not exist"),
        (["dataset=folder"], "dataset=folder needs source=DIR"),
    ],
)
def test_no_job_is_sent_out_for_nothing(send, words, complaint):
    failed = send(*words, "parts=2")
    assert failed.status == 1
    assert failed.err.startswith(f"error: {complaint}")
    assert failed.err.count("\n") == 1
    assert failed.out == ""


def test_parts_need_jobs(command, tmp_path):
    failed = command(tmp_path, "data_prep/prepare.py", "dataset=set5", "parts=2")
    assert (failed.status, failed.err.count("\n")) == (1, 1)
    assert failed.err.startswith("error: parts=2 shares the work among jobs: give -m too")
