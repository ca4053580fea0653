import os
import shutil

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from vdsr import hardware
from vdsr.net import VDSR


def test_a_precision_that_is_named_is_taken():
    assert hardware.precision("32-true") == "32-true"
    assert hardware.precision("16-mixed") == "16-mixed"


@pytest.mark.parametrize(
    ("gpu", "gpu_bf16", "cpu_bf16", "expected"),
    [
        (True, True, False, "bf16-mixed"),
        (True, False, True, "32-true"),
        (False, False, True, "bf16-mixed"),
        (False, False, False, "32-true"),
    ],
)
def test_auto_is_bf16_where_the_hardware_has_it(monkeypatch, gpu, gpu_bf16, cpu_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_bf16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu_bf16)
    assert hardware.precision("auto") == expected


def test_the_machine_is_described(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    found = hardware.describe()
    assert (found["cores"], found["threads"]) == (os.cpu_count(), torch.get_num_threads())
    assert found["gpus"] == ["GPU 0", "GPU 1"]
    assert found["cpu"]


def test_a_network_that_cannot_be_compiled_is_trained_as_it_is(monkeypatch, caplog):
    def fails(*_, **__):
        raise TorchDynamoException("no C++ compiler\nlong story")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    net = VDSR(3, 4)
    forward, ilr = hardware.compiled(net), torch.rand(1, 1, 9, 9)
    for _ in range(2):
        assert torch.equal(forward(ilr), net(ilr))
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile cannot be had here (no C++ compiler); going on without"
    ]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_a_compiled_network_is_the_same():
    net = VDSR(3, 4)
    ilr = torch.rand(2, 1, 9, 9)
    assert torch.allclose(hardware.compiled(net)(ilr), net(ilr), atol=1e-6)


@pytest.mark.parametrize("size", [None, 1, 3, 8, 99])
def test_chunks_change_neither_outputs_nor_gradients(size):
    torch.manual_seed(0)
    net = VDSR(4, 8).double()
    batch = torch.rand(8, 1, 12, 12, dtype=torch.float64)

    def gradients(forward):
        net.zero_grad()
        out = forward(batch)
        out.square().sum().backward()
        return [out, *(parameter.grad.clone() for parameter in net.parameters())]

    whole = gradients(net)
    chunked = gradients(lambda batch: hardware.in_chunks(net, batch, size))
    for a, b in zip(whole, chunked, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("gpu", "expected"), [(False, 16), (True, None)])
def test_auto_chunks_on_a_cpu_only(monkeypatch, gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert hardware.chunk("auto") == expected
    assert hardware.chunk(5) == 5
    assert hardware.chunk(None) is None
