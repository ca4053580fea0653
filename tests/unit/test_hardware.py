import os

import pytest
import torch

from vdsr import hardware


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
