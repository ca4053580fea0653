import os
import sys

import onnxruntime
import pytest
import torch

from vdsr import portable, weights
from vdsr.errors import InputError
from vdsr.net import SRCNN, VDSR, Bicubic
from vdsr.upscaler import Upscaler


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(5)
    net = VDSR(4, 8)
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return net.eval()


@pytest.fixture(scope="module")
def network(net, tmp_path_factory):
    return weights.save(net, tmp_path_factory.mktemp("network") / "small.safetensors")


@pytest.mark.parametrize(("format_", "suffix"), [("onnx", ".onnx"), ("torch_export", ".pt2")])
def test_any_size_within_1e_4_of_the_network(command, net, network, tmp_path, format_, suffix):
    result = command(tmp_path, "src/export.py", f"weights={network}", f"format={format_}")
    assert result.status == 0, result.err
    path = tmp_path / f"small{suffix}"
    assert os.listdir(tmp_path) == [path.name]
    assert result.out.startswith(f"{path.name}: differs from the network by ")
    if format_ == "onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        run = lambda ilr: torch.from_numpy(session.run(["hr"], {"ilr": ilr.numpy()})[0])  # noqa: E731
    else:
        run = torch.export.load(path).module()
    for size in ((1, 1, 1, 1), (3, 1, 50, 37), (1, 1, 128, 200)):
        ilr = torch.rand(size)
        with torch.inference_mode():
            wanted = net(ilr)
            assert (run(ilr) - wanted).abs().max() < 1e-4
            assert (wanted - ilr).abs().max() > 1e-2
    refused = command(tmp_path, "src/export.py", f"weights={network}", f"format={format_}")
    assert refused == (1, "", f"error: {path.name}: is there already; set overwrite=true to replace it\n")


def test_srcnn_too(tmp_path):
    assert portable.export(SRCNN().eval(), "torch_export", tmp_path / "srcnn.pt2") < 1e-4


def test_what_differs_is_not_written(net, tmp_path, monkeypatch):
    write = portable._write_program
    monkeypatch.setattr(portable, "_write_program", lambda net, path: lambda x: write(net, path)(x) + 2e-4)
    with pytest.raises(InputError, match=r"net\.pt2: differs from the network by 0\.0002, more than 0\.0001"):
        portable.export(net, "torch_export", tmp_path / "net.pt2")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("net", "format_", "words"),
    [(VDSR(2, 2), "tflite", "there are onnx, torch_export"), (Bicubic(), "onnx", "nothing")],
)
def test_what_cannot_be_exported(net, format_, words, tmp_path):
    with pytest.raises(InputError, match=words):
        portable.export(net, format_, tmp_path / "x")


def test_onnx_runtime_upscales_as_pytorch_does(network, noise):
    picture = noise(0, 30, 41, colour=True)
    options = {"precision": "32-true", "ensemble": True}
    torch_, onnx = (Upscaler.load(network, backend=name, **options) for name in ("torch", "onnx"))
    assert abs(torch_.upscale(picture / 255, 2.5) - onnx.upscale(picture / 255, 2.5)).max() < 1e-4
    assert onnx.identity != torch_.identity
    with pytest.raises(InputError, match="backend=tensorflow: there are torch and onnx"):
        Upscaler.load(network, backend="tensorflow")


def test_without_its_packages_it_says_what_to_install(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"ONNX needs onnxruntime: pip install -e '\.\[onnx\]'"):
        Upscaler.load(network, backend="onnx")
