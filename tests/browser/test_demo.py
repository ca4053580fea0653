"""The demo page as a person uses it: drop, upscale, slide, download."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vdsr import weights
from vdsr.net import VDSR
from vdsr.upscaler import Upscaler

ROOT = Path(__file__).parents[2]
PATIENCE = 120_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    torch.manual_seed(5)
    net = VDSR(3, 8)
    net.body[-1].weight.data *= 0.1
    return weights.save(net, tmp_path_factory.mktemp("network") / "small.safetensors")


@pytest.fixture(scope="module")
def demo(network, tmp_path_factory):
    """Its port, while it runs in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("demo")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "TMPDIR": str(folder), "no_proxy": "*",
    }  # fmt: skip
    line = [sys.executable, str(ROOT / "src/demo.py"), f"weights={network}", f"port={port}"]
    with (folder / "err.txt").open("w") as err:
        process = subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=err, text=True)
    try:
        said = process.stdout.readline()
        assert said == f"http://127.0.0.1:{port} (Ctrl-C ends it)\n", (folder / "err.txt").read_text()
        yield port
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def test_drop_upscale_slide_download(page, demo, network, structured, tmp_path):
    hr = Image.fromarray(structured(0, 96, 120)).convert("RGB")
    hr.save(tmp_path / "original.png")
    low = hr.resize((40, 32), Image.Resampling.BICUBIC)
    low.save(tmp_path / "low.png")

    page.goto(f"http://127.0.0.1:{demo}", timeout=PATIENCE)
    page.set_default_timeout(PATIENCE)
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "low.png")
    page.locator("#original input[type=file]").set_input_files(tmp_path / "original.png")
    for field in ("#picture", "#original"):
        page.locator(f"{field} [aria-label=Clear]").wait_for()  # uploaded
    page.locator("#scale input[type=number]").fill("3")
    page.locator("#scale input[type=number]").press("Enter")
    page.locator("#start").click()
    page.locator("#line").get_by_text("PSNR").wait_for()
    line = page.locator("#line").inner_text()
    assert re.search(r"120×96 · PSNR: bicubic \d+\.\d\d dB, network \d+\.\d\d dB", line)

    pictures = page.locator("#slider img")
    pictures.nth(1).wait_for()
    assert pictures.count() == 2
    assert [pictures.nth(n).evaluate("image => image.naturalWidth") for n in range(2)] == [120, 120]
    before = page.locator("#slider").screenshot()
    box = page.locator("#slider img").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 5, middle, steps=5)
    page.mouse.up()
    assert page.locator("#slider").screenshot() != before

    with page.expect_download() as waiting:
        page.locator("#download").click()
    waiting.value.save_as(tmp_path / "found.png")
    assert waiting.value.suggested_filename == "low_x3.png"
    wanted = Upscaler.load(network).upscale(low, 3)
    assert (np.asarray(Image.open(tmp_path / "found.png")) == np.asarray(wanted)).all()
    assert page.elsewhere == []  # nothing on the page comes from another machine


def test_what_cannot_be_used_is_said_on_the_page(page, demo, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    page.goto(f"http://127.0.0.1:{demo}", timeout=PATIENCE)
    page.set_default_timeout(PATIENCE)
    page.locator("#start").click()
    page.get_by_text("Drop a picture first.").wait_for()
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "cut.png")
    page.locator("#picture [aria-label=Clear]").wait_for()
    page.locator("#start").click()
    page.get_by_text("cut.png: does not decode").wait_for()


def test_this_machine_only(demo):
    """It listens at 127.0.0.1 and at no other address of this machine."""
    listening = Path("/proc/net/tcp")
    if not listening.exists():
        pytest.skip("which addresses are listened at is read from /proc, on Linux")
    rows = [line.split() for line in listening.read_text().splitlines()[1:]]
    rows += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    ours = [row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == demo]
    assert ours == ["0100007F"]


def test_a_port_that_is_taken(demo, network):
    line = [sys.executable, str(ROOT / "src/demo.py"), f"weights={network}", f"port={demo}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: port={demo} is taken: give another, such as port={demo + 1}\n"
