import collections
import functools
import http.server
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from vdsr import shards as shards_module
from vdsr import source, weights
from vdsr.data import SuperResolutionData
from vdsr.errors import InputError
from vdsr.stream import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def photos(tmp_path_factory, prepare, structured):
    """Twelve pictures in six shards."""
    with mock.patch.object(shards_module, "IMAGES_PER_SHARD", 2):
        return prepare(tmp_path_factory.mktemp("streamed") / "photos", {f"p{n:02d}": structured(n) for n in range(12)})


class Server:
    """A prepared folder over HTTP; `faults` are served in turn, one an answer: None, fail, cut or stall."""

    def __init__(self, folder):
        self.folder, self.faults = folder, [None]
        self.asked, self.faulty, self.done = collections.Counter(), 0, threading.Event()
        self._turn, self._lock = 0, threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.place = f"http://127.0.0.1:{self.http.server_port}/some/where"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, request):
        path = request.path.partition("?")[0]
        name = path.rpartition("/")[2]
        with self._lock:
            fault = self.faults[self._turn % len(self.faults)]
            self._turn += 1
            self.asked[name] += 1
            self.faulty += fault is not None
        if fault == "fail":
            return request.send_error(503)
        file = self.folder / name
        if not file.exists() or not path.startswith("/some/where/"):
            return request.send_error(404)
        data = file.read_bytes()
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        try:
            request.wfile.write(data[: len(data) // 2 if fault else len(data)])
            if fault == "stall":
                self.done.wait(5)
        except ConnectionError:
            pass

    def close(self):
        self.done.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(source, "FIRST_WAIT", 0.001)
    folder = tmp_path / "served"
    folder.mkdir()
    for path in photos.root.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    made = Server(folder)
    yield made
    made.close()


def module(sets, train, workers=2, **settings):
    settings = Settings(**{"workers": workers, "buffer": 4, "crops": 6, "retries": 20, "timeout": 0.3, **settings})
    data = SuperResolutionData(
        str(train), [sets.val], scales=[2, 3], patch=24, batch_size=8, mode="stream", stream=settings
    )
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=0, accumulate_grad_batches=1)
    return data


def patches(data, steps):
    """All patches of some steps, as training gets them."""
    loader = iter(data.train_dataloader())
    move = functools.partial(data.transfer_batch_to_device, device=torch.device("cpu"), dataloader_idx=0)
    try:
        return torch.cat([move(batch).hr for batch in itertools.islice(loader, steps)])
    finally:  # an error would keep it until some later test
        getattr(loader, "_shutdown_workers", lambda: None)()


# --- over HTTP ---


def test_a_server_that_fails_cuts_and_stalls_only_costs_time(sets, photos, server, caplog):
    server.faults = ["fail", None, "cut", None, None, "fail", None, "stall", None, None]
    data = module(sets, server.place)
    assert data.train_shards.checksum == photos.checksum
    made = patches(data, 30)
    assert len(made) == 30 * 8
    assert torch.equal(made, patches(module(sets, photos.root), 30))
    assert 10 < data.retries < server.asked.total()  # a loaded machine may time out a good answer
    caplog.set_level(logging.INFO, "vdsr.data")
    data.teardown("fit")
    assert f"data: {data.retries} retries of shards" in caplog.text
    assert "shard index.json: 1 retry" in caplog.text


def test_retries_are_counted_and_logged_by_shard(sets, server, caplog):
    data = module(sets, server.place, workers=0)
    server.faults = [None, "fail", "cut"]  # of which the index has had the first
    patches(data, 1)
    assert data.retries == 2 * caplog.text.count(": 2 retries") > 0
    assert "shard photos-0000" in caplog.text


def test_a_shard_missing_for_good_ends_it_in_one_line(sets, server):
    for shard in server.folder.glob("*.tar"):
        shard.unlink()
    with pytest.raises(InputError) as caught:
        patches(module(sets, server.place), 1)
    text = str(caught.value)
    assert text.startswith(f"{server.place}: photos-0000")
    assert text.endswith("is not to be had (HTTP 404): copy the whole prepared folder there, or name another place as "
                         "data.train")  # fmt: skip
    assert sum(server.asked.values()) <= 3  # no retry of what is final: the index, and one shard a worker


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("fail", "HTTP 503"),
        ("cut", "the answer broke off|the connection failed"),
        ("stall", "no answer in time|the connection failed"),
    ],
)
def test_retries_that_are_used_up_end_it_in_one_line(sets, server, fault, why):
    data = module(sets, server.place, workers=1, retries=2, timeout=0.1)
    server.faults = [fault]
    with pytest.raises(
        InputError, match=rf"tar could not be fetched in 3 attempts \(({why}).*raise data.stream.retries"
    ):
        patches(data, 1)
    assert data.retries == 2


def test_a_shard_that_is_not_the_index_s_is_asked_for_again_and_refused(sets, server):
    data = module(sets, server.place, workers=0, retries=2)
    for shard in server.folder.glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"in 3 attempts \(its SHA-256 is not the one that index.json says\)"):
        patches(data, 1)
    for shard in server.folder.glob("*.tar"):
        shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"\(more than the \d+ bytes expected\)"):
        patches(data, 1)
    for shard in server.folder.glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:-600])
    with pytest.raises(InputError, match=r"\(\d+ of \d+ bytes\)"):
        patches(data, 1)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"some/where: index.json is not to be had \(HTTP 404\)"),
        ("{", r"index.json could not be fetched in 2 attempts \(index.json is not JSON\)"),
        ('{"format": 99}', r"some/where: index has format 99, newer than 1; update this program"),
    ],
)
def test_an_address_without_an_index(sets, server, content, complaint):
    (server.folder / "index.json").unlink()
    if content:
        (server.folder / "index.json").write_text(content)
    with pytest.raises(InputError, match=complaint) as caught:
        module(sets, server.place, retries=1)
    assert "\n" not in str(caught.value)


def test_no_server(sets, server):
    server.close()
    with pytest.raises(InputError, match=r"index.json could not be fetched in 2 attempts \(the connection failed\)"):
        module(sets, server.place, retries=1)


def test_an_address_s_secrets_are_sent_but_not_shown(sets, server):
    place = server.place.replace("http://", "http://me:secret@") + "/?token=secret"
    data = module(sets, place, workers=0)
    assert len(patches(data, 1)) == 8
    for shard in server.folder.glob("*.tar"):
        shard.unlink()
    with pytest.raises(InputError) as caught:
        patches(data, 1)
    assert "secret" not in str(caught.value)
    assert server.place in str(caught.value)


def test_with_a_cache_each_shard_is_fetched_once(tmp_path, sets, photos, server):
    cache = tmp_path / "cache"
    first = patches(module(sets, server.place, cache=str(cache)), 30)
    shards = {shard.file for shard in photos.shards}
    # two workers may want the same one at the same moment
    assert all(1 <= server.asked[name] <= 2 for name in shards)
    assert {path.name for path in cache.iterdir()} >= {f"{shard.sha256}.tar" for shard in photos.shards}
    server.asked.clear()
    (cache / f"{photos.shards[3].sha256}.tar").write_bytes(b"damaged")
    assert torch.equal(patches(module(sets, server.place, cache=str(cache)), 30), first)
    assert set(server.asked) == {"index.json", photos.shards[3].file}


# --- training ---


def test_training_from_an_address(tmp_path, train, photos, server):
    server.faults = [None, "fail", None, "cut", None, None, "fail", None, "stall", None]
    streamed = [f"data.train={server.place}", "data.mode=stream", "data.stream.workers=1", "data.stream.timeout=2"]
    folder = tmp_path / "run"
    done = train(tmp_path, *streamed, f"hydra.run.dir={folder}")
    assert done.status == 0, done.err
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["data"]["checksums"]["photos"] == photos.checksum
    assert record["data"]["patches_per_epoch"] == 12 * 16
    assert [point["step"] for point in record["curve"]] == [1, 2, 3, 4]
    assert record["curve"][-1]["epoch"] == pytest.approx(4 * 4 / (12 * 16))  # four steps of four samples
    (shown,) = re.findall(r"data: (\d+) retr(?:y|ies) of shards", (folder / "train.log").read_text())
    assert int(shown) >= 2
    for shard in server.folder.glob("*.tar"):
        shard.unlink()
    failed = train(tmp_path, *streamed, f"hydra.run.dir={tmp_path / 'other'}")
    assert failed.status == 1
    assert failed.err.strip().splitlines()[-1].startswith(f"error: {server.place}: photos-0000")
    assert "Traceback" not in failed.err


KILL = f"""
import os, pathlib, runpy, signal, sys
from vdsr.callbacks.recorder import Recorder
import torch.utils.data
going_on = Recorder.on_train_batch_end
def kill(self, trainer, *rest):
    going_on(self, trainer, *rest)
    if trainer.global_step == 3:
        children = pathlib.Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split()
        pathlib.Path("children").write_text(" ".join(children))
        os.kill(os.getpid(), signal.SIGKILL)
Recorder.on_train_batch_end = kill
sys.argv[0] = {str(ROOT / "src" / "train.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_killed_run_goes_on_with_the_same_batches_and_its_workers_end(tmp_path, train, sets, photos):
    streamed = [f"data.train={photos.root}", "data.mode=stream", "data.stream.buffer=3", "trainer.checkpoint_every=2"]
    whole = train(tmp_path, *streamed, f"hydra.run.dir={tmp_path / 'whole'}")
    assert whole.status == 0, whole.err
    common = ["+experiment=smoke", "logger=none", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    command = [*common, f"data.val=[{sets.val}]", *streamed, f"hydra.run.dir={tmp_path / 'cut'}"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    died = subprocess.run(
        [sys.executable, "-c", KILL, *command], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
    workers = (tmp_path / "children").read_text().split()
    assert len(workers) >= 2
    for _ in range(100):
        if not any(map(alive, workers)):
            break
        time.sleep(0.1)
    assert not any(map(alive, workers))
    again = train(tmp_path, *streamed, f"hydra.run.dir={tmp_path / 'cut'}")
    assert again.status == 0, again.err
    assert "continuing at step 2" in again.out + again.err
    one, other = (weights.load(tmp_path / run / "weights.safetensors").state_dict() for run in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- signals ---


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers keep their usual signals")
def test_workers_leave_signals_to_the_main_process(sets, photos):
    loader = iter(module(sets, photos.root).train_dataloader())
    for _ in range(2):  # one of each: both have begun
        next(loader)
    workers = loader._workers
    for worker, number in itertools.product(workers, (signal.SIGUSR1, signal.SIGINT)):
        os.kill(worker.pid, number)
    # one who is not the parent
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in workers)], check=True)
    for _ in range(20):
        next(loader)
    assert all(worker.is_alive() for worker in workers)
    began = time.monotonic()
    for worker in workers:
        worker.terminate()
        worker.join(5)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert time.monotonic() - began < 3
