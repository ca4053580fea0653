"""`src/upscale.py` on pictures: what comes out, and one clear line for what cannot be used."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vdsr import weights
from vdsr.net import VDSR
from vdsr.upscaler import Upscaler

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Weights of a network that changes pictures a little."""
    torch.manual_seed(5)
    net = VDSR(3, 8)
    net.body[-1].weight.data *= 0.1
    return weights.save(net, tmp_path_factory.mktemp("network") / "small.safetensors", scales=[2, 3, 4])


@pytest.fixture
def upscale(command, network, tmp_path):
    def run(*arguments):
        exact = ["accelerator=cpu", "precision=32-true"]
        return command(tmp_path, "src/upscale.py", f"weights={network}", *exact, *arguments)

    return run


@pytest.fixture
def process(network, tmp_path):
    """In a process of its own, for standard input and output."""

    def run(*arguments, **options):
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        line = [sys.executable, str(ROOT / "src/upscale.py"), f"weights={network}", "accelerator=cpu", *arguments]
        return subprocess.run(
            line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False, **options
        )

    return run


@pytest.fixture
def picture(noise, tmp_path):
    """A file of 20 × 12 pixels by its name."""

    def make(name, seed=0, mode="RGB", **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(seed, 12, 20, colour=True)).convert(mode).save(path, **options)
        return path

    return make


def refused(result, *words):
    assert result.status == 1
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.out + result.err
    assert [word for word in words if word not in result.err] == []


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def size(path):
    with Image.open(path) as image:
        image.load()
        return image.format, image.size


# --- files, folders, patterns, streams ---


def test_a_picture_beside_the_picture(upscale, picture, network, tmp_path):
    source = picture("photo.png")
    before = source.read_bytes()
    result = upscale("input=photo.png", "scale=3")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("photo_x3.png: 60×36, ")
    with Image.open(source) as low, Image.open(tmp_path / "photo_x3.png") as found:
        wanted = Upscaler.load(network, precision="32-true").upscale(low, 3)
        assert (np.asarray(found) == np.asarray(wanted)).all()
    assert source.read_bytes() == before
    assert files(tmp_path) == ["photo.png", "photo_x3.png"]


@pytest.mark.parametrize(
    ("arguments", "name", "kind"),
    [
        (["scale=2.5"], "photo_x2.5.jpg", "JPEG"),
        (["format=webp"], "photo_x2.webp", "WEBP"),
        (["format=tiff"], "photo_x2.tiff", "TIFF"),
        (["output=a/b.png"], "a/b.png", "PNG"),
        (["output=a"], "a/photo.jpg", "JPEG"),
        (["output=a", "format=png", "quality=20"], "a/photo.png", "PNG"),
    ],
)
def test_where_it_goes_and_as_what(upscale, picture, tmp_path, arguments, name, kind):
    picture("photo.jpg")
    result = upscale("input=photo.jpg", *arguments)
    assert result.status == 0, result.err
    scale = 2.5 if "scale=2.5" in arguments else 2
    assert size(tmp_path / name) == (kind, (20 * scale, 12 * scale))
    assert files(tmp_path) == sorted(["photo.jpg", name])


@pytest.mark.parametrize("name", ["a (1), b=c.png", "it's.png", "ümlaut [x].png", "100%.png"])
def test_names_as_people_give_them(upscale, picture, tmp_path, name):
    picture(name)
    assert upscale(f"input={name}", f"output=out/{name}").status == 0
    assert size(tmp_path / "out" / name)[1] == (40, 24)


def test_a_folder_with_its_folders(upscale, picture, tmp_path):
    for name in ("in/a.png", "in/b/c.bmp", "in/b/d.JPG"):
        picture(name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    picture("in/.hidden.png")
    result = upscale("input=in")
    assert result.status == 0, result.err
    assert files(tmp_path / "in_x2") == ["a.png", "b/c.png", "b/d.JPG"]
    inside = upscale("input=in", "output=in/large")
    assert inside.status == 0
    assert upscale("input=in", "output=in/large", "overwrite=true").status == 0
    assert files(tmp_path / "in/large") == ["a.png", "b/c.png", "b/d.JPG"]  # and not its own output


def test_a_pattern(upscale, picture, tmp_path):
    for name in ("a1.png", "a2.png", "b1.png"):
        picture(name)
    assert upscale("input=a*.png", "output=out").status == 0
    assert files(tmp_path / "out") == ["a1.png", "a2.png"]


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_standard_input_to_standard_output(process, picture, kind):
    data = picture(f"photo.{kind}").read_bytes()
    done = process("input=-", "output=-", "scale=3", input=data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert size(io.BytesIO(done.stdout)) == ({"png": "PNG", "jpg": "JPEG"}[kind], (60, 36))


def test_streams_on_one_side(process, picture, tmp_path):
    path = picture("photo.png")
    assert process("input=-", "output=out.webp", input=path.read_bytes()).returncode == 0
    assert size(tmp_path / "out.webp") == ("WEBP", (40, 24))
    assert size(io.BytesIO(process("input=photo.png", "output=-", "format=tiff").stdout)) == ("TIFF", (40, 24))
    broken = process("input=-", input=b"")
    assert (broken.returncode, broken.stdout) == (1, b"")
    assert broken.stderr == b"error: standard input: is empty (0 bytes); copy or download it again\n"


# --- what people want kept ---


def test_existing_outputs_stay_unless_told(upscale, picture, tmp_path):
    picture("photo.png")
    (tmp_path / "photo_x2.png").write_text("mine")
    refused(upscale("input=photo.png"), "photo_x2.png: is there already; set overwrite=true")
    assert (tmp_path / "photo_x2.png").read_text() == "mine"
    assert upscale("input=photo.png", "overwrite=true").status == 0
    assert size(tmp_path / "photo_x2.png")[1] == (40, 24)


def test_a_folder_goes_on_past_a_bad_file_and_names_it(upscale, picture, tmp_path):
    picture("in/a.png")
    picture("in/z.png", seed=1)
    (tmp_path / "in/m.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:100])
    result = upscale("input=in")
    refused(result, "in: 1 of 3 left out, named above")
    assert "left out in/m.png: does not decode" in result.out
    assert files(tmp_path / "in_x2") == ["a.png", "z.png"]


def test_inputs_are_never_written_to(upscale, picture, tmp_path):
    path = picture("in/a.png")
    before = path.read_bytes()
    refused(upscale("input=in", "output=in"), "output=in is the input folder: name another")
    refused(upscale("input=in", "output=in/../in/.", "overwrite=true"), "is the input folder")
    refused(upscale("input=in/a.png", "output=in/a.png", "overwrite=true"), "in/a.png: would be written over")
    refused(upscale("input=in/a.png", "output=in", "overwrite=true"), "would be written over")
    (tmp_path / "link").symlink_to("in")
    refused(upscale("input=in/*.png", "output=link", "overwrite=true"), "would be written over")
    assert path.read_bytes() == before
    assert files(tmp_path / "in") == ["a.png"]


def test_two_inputs_for_one_output(upscale, picture, tmp_path):
    picture("in/a.png")
    picture("in/a.jpg")
    refused(upscale("input=in", "format=png"), "in_x2/a.png: more than one input would go there")
    assert not (tmp_path / "in_x2").exists()


# --- bad input ---


def bomb():
    """A PNG of a few bytes that announces 100 megapixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99))]
    packed = [struct.pack(">I", len(d)) + c + d + struct.pack(">I", zlib.crc32(c + d)) for c, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed) + struct.pack(">I", 0) + b"IEND\xaeB`\x82"


def of(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 90).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.png", b"", "is empty (0 bytes)"),
        ("text.png", b"no picture\n" * 20, "is not a PNG, JPEG, WebP, TIFF or BMP image"),
        ("cut.jpg", of("JPEG")[:-200], "does not decode, damaged or truncated"),
        ("moving.webp", of("WEBP", save_all=True, append_images=[Image.new("RGB", (40, 40))]), "is animated"),
        ("pages.tiff", of("TIFF", save_all=True, append_images=[Image.new("RGB", (40, 40))]), "several pages (2)"),
        ("cmyk.jpg", of("JPEG", "CMYK"), "colour mode CMYK; convert it to RGB"),
        ("bomb.png", bomb(), "needs "),
    ],
)
def test_pictures_that_cannot_be_used(upscale, tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    refused(upscale(f"input={name}", "memory=800MB"), f"error: {name}: ", words)
    assert files(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == data


def test_one_pixel(upscale, tmp_path):
    Image.new("RGB", (1, 1), (200, 30, 90)).save(tmp_path / "one.png")
    assert upscale("input=one.png", "scale=4").status == 0
    assert size(tmp_path / "one_x4.png")[1] == (4, 4)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("scale=0.5", "scale 0.5: give a number from 1 to 8"),
        ("scale=40", "scale 40: give a number from 1 to 8"),
        ("scale=large", "scale 'large'"),
        ("format=gif", "format=gif: there are png, jpg, webp, tiff"),
        ("quality=0", "quality=0: give a whole number from 1 to 100"),
        ("memory=much", "memory=much: give a size such as 1GB"),
        ("memory=1MB", "MB more than memory= allows"),
        ("weights=nothing", "no network named 'nothing'"),
        ("output=photo.gif/x.png", "photo.gif"),
        ("input=none.png", "none.png: no such file"),
        ("input=*.xyz", "*.xyz: no such file"),
        ("input=bare", "bare: has no pictures and no videos"),
        ("ensmble=true", "did you mean 'ensemble'?"),
    ],
)
def test_settings_that_cannot_be_used(upscale, picture, tmp_path, argument, words):
    picture("photo.png")
    (tmp_path / "photo.gif").write_bytes(b"")
    (tmp_path / "bare").mkdir()
    refused(upscale("input=photo.png", argument) if "input" not in argument else upscale(argument), words)
    assert files(tmp_path) == ["photo.gif", "photo.png"]


def test_beyond_what_was_trained_it_says_what_to_expect(upscale, picture, tmp_path):
    picture("photo.png")
    result = upscale("input=photo.png", "scale=6")
    assert result.status == 0
    assert result.err == "scale 6: the network was trained up to 4; beyond, expect sharper edges at most\n"
    assert size(tmp_path / "photo_x6.png")[1] == (120, 72)
    assert upscale("input=photo.png", "scale=1.5").err == ""


def test_what_a_format_cannot_hold(upscale, picture, tmp_path):
    picture("photo.png", mode="RGBA")
    refused(upscale("input=photo.png", "format=jpg"), "photo.png: has transparency, which JPEG cannot hold")
    assert files(tmp_path) == ["photo.png"]


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.tiff", "photo.webp"])
def test_the_disk_is_full(upscale, disk, noise, name):
    folder = disk("size=20k")
    Image.fromarray(noise(0, 100, 100, colour=True)).save(folder.parent / name)
    refused(upscale(f"input={name}", f"output={folder}"), "No space left on device; free space")
    assert files(folder) == []


def test_every_option_changes_what_comes_out(upscale, picture, tmp_path):
    picture("photo.png")
    assert upscale("input=photo.png", "output=a.png").status == 0
    assert upscale("input=photo.png", "output=b.png", "ensemble=true").status == 0
    assert upscale("input=photo.png", "output=c.png", "precision=bf16-mixed").status == 0
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in "abc")
    assert abs(a - b).max() > 0
    assert abs(a - c).max() <= 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc, on Linux")
def test_a_large_picture_stays_within_its_memory(network, measured, tmp_path):
    """16 megapixels out; as floats they alone would be 190 MB."""
    Image.effect_noise((500, 500), 60).convert("RGB").resize((2000, 2000)).save(tmp_path / "large.png")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    line = [*measured("src/upscale.py"), f"weights={network}", "input=large.png", "memory=400MB"]
    subprocess.run(line, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert size(tmp_path / "large_x2.png")[1] == (4000, 4000)
    assert 200e6 < int((tmp_path / "peak").read_text()) < 400e6
