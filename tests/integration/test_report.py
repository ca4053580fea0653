"""RESULTS.md is what the committed records say; the command on real runs; the page and its server; bad input."""

import hashlib
import html
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from vdsr import weights
from vdsr.errors import InputError
from vdsr.net import SRCNN, VDSR
from vdsr.results import page
from vdsr.results.live import Server

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "RESULTS.md"


@pytest.fixture
def report(command, tmp_path):
    def run(*overrides):
        return command(tmp_path, "src/report.py", *overrides)

    return run


def test_the_committed_records_make_the_committed_document(report, tmp_path):
    shutil.copytree(ROOT / "results", tmp_path / "results")
    done = report()
    assert (done.status, done.err) == (0, "")
    assert (tmp_path / "RESULTS.md").read_bytes() == RESULTS.read_bytes()
    shown = set(re.findall(r"!\[[^\]]*\]\(([^)]*)\)", RESULTS.read_text(encoding="utf-8")))
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("docs/results/*")}
    assert shown == made
    assert shown == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/results/*")}


def test_the_cards_of_the_networks_are_made_from_the_records(report, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (tmp_path / "results").symlink_to(ROOT / "results")
    for path in (ROOT / "weights").glob("*.safetensors"):
        shutil.copy(path, folder)
    done = report("cards=weights", "out=made.md", "pictures=made", "page=null")
    assert (done.status, done.err) == (0, "")
    assert (folder / "README.md").read_bytes() == (ROOT / "weights/README.md").read_bytes()


def test_the_readme_says_what_the_network_s_record_says():
    card = (ROOT / "weights/README.md").read_text(encoding="utf-8").replace("\\_", "_")
    record = json.loads((ROOT / "weights" / re.search(r"\| record \| (\S+) \|", card)[1]).read_text())
    psnr = [f"{record['metrics']['set5'][scale]['psnr']:.2f}" for scale in ("x2", "x3", "x4")]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"in {record['seconds'] / 3600:.1f} hours on two CPU cores: Set5 {' / '.join(psnr)} dB" in text


@pytest.mark.slow
def test_a_network_s_card(report, run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "runs/run")
    (tmp_path / "networks").mkdir()
    copy = shutil.copy(run_dir / "weights.safetensors", tmp_path / "networks/mine.safetensors")
    made = ["cards=networks", "out=made.md", "pictures=made", "page=null"]
    assert report("records=runs", *made).status == 0
    card = (tmp_path / "networks/README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(Path(copy).read_bytes()).hexdigest() in card
    assert "| network | VDSR, D = 3, 8 filters, " in card
    assert "| record | ../runs/run/record.json |" in card
    scores = json.loads((run_dir / "record.json").read_text())["metrics"]["val"]["x3"]
    assert f"| val ×3 | {scores['psnr']:.2f} | {scores['ssim']:.4f} |" in card
    (tmp_path / "networks/README.md").unlink()
    shutil.rmtree(tmp_path / "runs/run")
    (tmp_path / "runs").mkdir(exist_ok=True)
    done = report("records=runs", *made)
    assert done.status == 1
    assert "networks/mine.safetensors: no record has its scores" in done.err
    assert not (tmp_path / "networks/README.md").exists()


@pytest.mark.slow
def test_a_real_run_is_reported(report, run_dir, sets, tmp_path):
    made = ["out=made/RESULTS.md", "pictures=made/pictures", "page=made/index.html"]
    done = report(f"records={run_dir.parent}", *made, f"paths.data={sets.root}", "sets=[val]")
    assert (done.status, done.err) == (0, "")
    text = (tmp_path / "made" / "RESULTS.md").read_text(encoding="utf-8")
    (row,) = re.findall(
        r"^\| smoke \| VDSR \| (.*) \| 0\.0025 % of the paper's patches \| (.*) \|$", text, re.MULTILINE
    )
    assert re.fullmatch(r"\d+\.\d\d \([+-]\d+\.\d\d\)", row[0])
    assert "4 steps × 4: 0.0025 % of the paper's patches" in text
    assert "32-true" in text
    assert re.search(r"`python src/train.py \+experiment=smoke hydra.mode=RUN .*`", text)
    shown = (tmp_path / "made" / "index.html").read_text(encoding="utf-8")
    assert f"the network of {run_dir / 'weights.safetensors'}" in shown  # found beside the record
    drawn = {path.name for path in (tmp_path / "made" / "pictures" / "val").iterdir()}
    kinds = ["original", *(f"x{scale}-{what}" for scale in (2, 3, 4) for what in ("bicubic", "network"))]
    assert drawn == {f"{number:03}-{kind}.webp" for number in range(2) for kind in kinds}


@pytest.mark.slow
def test_the_record_says_what_an_image_takes(run_dir):
    from vdsr import records

    record = records.read(run_dir / "record.json")
    assert record["precision"] == "32-true"
    assert record["inference"]["set"] == "val"
    assert 0 < record["inference"]["seconds_per_image"] < 60


@pytest.fixture
def benchmarks(tmp_path, prepare, structured):
    for name in ("set5", "set14"):
        prepare(tmp_path / "data" / name, {f"{name}-{seed}": structured(seed, 60, 60) for seed in range(2)})
    torch.manual_seed(0)
    weights.save(VDSR(3, 4), tmp_path / "vdsr.safetensors")
    weights.save(SRCNN(), tmp_path / "srcnn.safetensors")
    for scale in (2, 3, 4):
        weights.save(SRCNN(), tmp_path / f"x{scale}.safetensors", scales=[scale])
    (tmp_path / "results").mkdir()


def test_crops_compare_the_networks_picture_by_picture(report, benchmarks, tmp_path):
    alone = report("crops=one", "sets=null", "vdsr=vdsr.safetensors")
    assert (alone.status, alone.err) == (0, "")
    both = report("crops=two", "sets=null", "vdsr=vdsr.safetensors", "srcnn=srcnn.safetensors")
    assert (both.status, both.err) == (0, "")
    names = {"one": [], "two": []}
    for folder, found in names.items():
        for path in sorted((tmp_path / folder).rglob("*")):
            if path.is_file():
                found.append(path.relative_to(tmp_path / folder).as_posix())
    expected = [f"{name}/{name}-{name}-{seed}.png" for name in ("set14", "set5") for seed in range(2)]
    assert names == {"one": expected, "two": expected}
    three = ",".join(f"x{scale}.safetensors" for scale in (4, 2, 3))
    each = report("crops=two", "sets=null", "vdsr=vdsr.safetensors", f"srcnn=[{three}]")
    assert (each.status, each.err) == (0, "")
    widths = []
    for folder in names:
        with Image.open(tmp_path / folder / expected[0]) as picture:
            widths.append(picture.width)
    assert widths[1] == pytest.approx(widths[0] * 4 / 3, abs=3)  # a column more


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["records=none"], "none: no such folder of run records"),
        (["records=cut"], "cut/x/0.json: no run record, or a damaged one"),
        (["crops=c"], "give vdsr=FILE, or srcnn=FILE, or both"),
        (["crops=c", "vdsr=none.safetensors"], "none.safetensors: no such weights file"),
        (["crops=c", "srcnn=[x2.safetensors]"], "x2.safetensors: trained at no ×3, ×4; name a network for each scale"),
        (["crops=c", "vdsr=v.safetensors", "sets=null", "paths.data=nowhere"], "nowhere/set5"),
    ],
)
def test_what_cannot_be_reported_is_said_in_one_line(report, tmp_path, overrides, words):
    (tmp_path / "cut" / "x").mkdir(parents=True)
    (tmp_path / "cut" / "x" / "0.json").write_text('{"format": 1, "name": "paper", "conf')
    (tmp_path / "results").mkdir()
    weights.save(VDSR(3, 4), tmp_path / "v.safetensors")
    weights.save(SRCNN(), tmp_path / "x2.safetensors", scales=[2])
    done = report(*overrides)
    assert done.status == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert words in done.err
    left = {path.name for path in tmp_path.iterdir()} - {"cut", "results", "v.safetensors", "x2.safetensors"}
    assert left <= {"RESULTS.md", "report"}  # the document is whole even where the comparisons cannot be drawn
    assert (left == set()) == ("records" in overrides[0])


# --- the page ---


def embedded(text, name):
    """What the page's scripts read."""
    (found,) = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL)
    return json.loads(found, parse_constant=lambda constant: pytest.fail(constant))


def test_nothing_in_the_page_is_asked_of_another_host(report, recorded, tmp_path):
    recorded(tmp_path / "results" / "0.json")
    assert report().status == 0
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    plotly = page.get_plotlyjs()
    assert plotly in text
    own = text.replace(plotly, "")
    assert re.findall(r"(?:src|href|action|poster|data)=[\"']?(?!#|data:)([^\"' >]+)", own) == []
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html.unescape(own))
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert policy.count("'sha256-") == 2


def test_a_script_in_a_name_stays_text(report, recorded, tmp_path):
    name = "</script><script>alert(1)</script>"
    recorded(tmp_path / "results" / "0.json", name=name)
    assert report().status == 0
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert name not in text
    assert html.escape(name) in text
    assert list(embedded(text, "figures")) == [name]


def test_not_a_number_is_no_figure(report, recorded, tmp_path):
    path = recorded(tmp_path / "results" / "0.json", points=10)
    record = json.loads(path.read_text())
    record["curve"][3]["loss"] = float("nan")
    record["validations"][0]["scores"]["sample_val"]["x2"]["psnr"] = float("inf")
    record["metrics"]["sample_val"]["x2"]["psnr"] = float("nan")
    path.write_text(json.dumps(record))
    done = report()
    assert (done.status, done.err) == (0, "")
    charts = embedded((tmp_path / "report" / "index.html").read_text(encoding="utf-8"), "figures")["depth_sweep"]
    losses = charts[1]["figure"]["data"][0]["y"]
    assert losses[3] is None
    assert None not in losses[:3] + losses[4:]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 9}, "format 9 is newer than this version reads"),
        ({"curve": None}, "a damaged record (TypeError"),
        ({"seconds": None}, "a damaged record (TypeError"),
        ({"metrics": {"set5": {"x2": {"psnr": 30.0}}}}, "a damaged record (KeyError: 'ssim'"),
        ({"config": {}}, "a damaged record"),
        ({"overrides": [3]}, "a damaged record"),
        ({"validations": [{"step": 3, "scores": []}]}, "a damaged record"),
    ],
)
def test_a_record_of_no_use_hides_no_other(report, recorded, tmp_path, changes, words):
    recorded(tmp_path / "results" / "0.json", gain=0.25)
    recorded(tmp_path / "results" / "1.json", **changes)
    done = report()
    assert done.status == 1
    assert done.err.startswith(f"error: results/1.json: {words}")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "RESULTS.md").exists()
    text = html.unescape((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert "1 record of no use" in text
    assert done.err.removeprefix("error: ").strip() in text
    assert ">+0.25<" in text


def test_each_of_several_is_named(report, recorded, tmp_path):
    for number in range(5):
        path = recorded(tmp_path / "results" / f"{number}.json")
        if number % 2:
            path.write_text(path.read_text()[:99])
    done = report()
    assert (done.status, done.err) == (1, "error: results: 2 records cannot be used\n")
    assert [line[:15] for line in done.out.splitlines() if "damaged" in line] == ["results/1.json:", "results/3.json:"]


# --- live ---


@pytest.fixture
def serve(tmp_path, recorded):
    """Serve `tmp_path/runs` of one run, with a picture: ask(path, **headers) → status, body, response."""
    recorded(tmp_path / "runs" / "0" / "record.json", gain=0.25)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "o.webp").write_bytes(b"picture")
    (tmp_path / "secret.webp").write_bytes(b"secret")
    at_2 = page.AtScale(2, "set/o.webp", "set/o.webp", 30.0, 31.0)
    pictures = page.Pictures("a network", [page.Comparison("set", "o", "set/o.webp", 8, 8, [at_2])])
    with Server(tmp_path / "runs", 0, pictures, tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(path, method="GET", **headers):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            body = response.read()
            connection.close()
            return response.status, body, response

        ask.server = server
        yield ask
        server.shutdown()


def test_the_content_follows_the_records(serve, recorded, tmp_path):
    status, body, first = serve("/content")
    assert (status, b">+0.25<" in body) == (200, True)
    assert serve("/content", **{"If-None-Match": first.headers["ETag"]})[:2] == (304, b"")
    recorded(tmp_path / "runs" / "1" / "record.json", gain=-0.75)
    status, body, _ = serve("/content", **{"If-None-Match": first.headers["ETag"]})
    assert (status, b">-0.75<" in body) == (200, True)
    (tmp_path / "runs" / "1" / "record.json").write_text('{"format": 1, "na')
    assert b"1 record of no use" in serve("/content")[1]
    shutil.rmtree(tmp_path / "runs")
    assert b"no such folder of run records" in serve("/content")[1]


def test_the_server_gives_away_nothing_else(serve):
    status, body, _ = serve("/")
    assert status == 200
    assert f'data-live="{serve.server.content()[0]}"' in body.decode()
    assert "connect-src 'self'" in html.unescape(body.decode())
    assert serve("/pictures/set/o.webp")[:2] == (200, b"picture")
    for path in (
        "/secret.webp",
        "/pictures/../secret.webp",
        "/pictures/%2e%2e/secret.webp",
        "/runs/0/record.json",
    ):
        assert serve(path)[:2] == (404, b""), path
    assert serve("/", Host="example.org")[:2] == (403, b"")  # a name that was pointed at this machine
    assert serve("/", method="POST")[0] == 501
    assert serve.server.server_address[0] == "127.0.0.1"


def test_the_command_serves_until_ctrl_c(recorded, tmp_path):
    recorded(tmp_path / "runs" / "0" / "record.json", gain=0.25)
    line = [sys.executable, str(ROOT / "src" / "report.py"), "records=runs", "serve=true", "port=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # it is ignored where the tests run in the background
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=heard
    ) as process:
        port = re.match(r"http://127\.0\.0\.1:(\d+)/ shows runs", process.stdout.readline())[1]
        connection = http.client.HTTPConnection("127.0.0.1", int(port))
        connection.request("GET", "/")
        assert b">+0.25<" in connection.getresponse().read()
        connection.close()
        process.send_signal(signal.SIGINT)
        assert (process.wait(60), process.stdout.read()) == (0, "ended\n")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_port_that_is_taken(serve, tmp_path):
    port = serve.server.server_port
    with pytest.raises(InputError, match=f"port={port}: is taken; give port=… another number"):
        Server(tmp_path / "runs", port)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["port=99999"], "port=99999: "),
        (["port=x"], "port=x: "),
        (["records=none"], "none: no such folder of run records"),
    ],
)
def test_what_cannot_be_served(report, tmp_path, overrides, words):
    (tmp_path / "results").mkdir()
    done = report("serve=true", *overrides)
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert done.err.startswith(f"error: {words}")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
