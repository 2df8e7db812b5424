"""Devices that there are, that there are not, and a GPU that PyTorch cannot use."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from d2_cityscapes.benchmark.device import default_device
from d2_cityscapes.engine import devices
from d2_cityscapes.engine.setup import ConfigError, check_gpus, load_config

OLD = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU "
    "driver by downloading and installing a new version from the URL: http://www.nvidia.com"
)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine without any GPU, to which a test gives one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(
        devices, "_TRACES", [(str(tmp_path / "dev"), "nvidia[0-9]*"), (str(tmp_path / "proc"), "*")]
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for folder in ("dev", "proc", "bin"):
        (tmp_path / folder).mkdir()
    return tmp_path


def torch_says(monkeypatch, message: str, *, cuda: str | None = "13.0") -> None:
    def init():
        raise RuntimeError(message)

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", cuda)


def smi(machine: Path, output: str, code: int = 0) -> None:
    program = machine / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{output}'\nexit {code}\n")
    program.chmod(0o755)


@pytest.mark.parametrize("sign", ["device file", "driver's list", "nvidia-smi"])
def test_a_gpu_with_an_old_driver_is_no_reason_to_train_on_the_cpu(machine, monkeypatch, sign):
    torch_says(monkeypatch, OLD)
    if sign == "device file":
        (machine / "dev" / "nvidia0").touch()
    elif sign == "nvidia-smi":
        smi(machine, "GPU 0: NVIDIA RTX A5000 (UUID: GPU-1)")
    else:
        (machine / "proc" / "0000:01:00.0").mkdir()
    with pytest.raises(ConfigError) as caught:
        load_config("", ["MODEL.DEVICE", "cuda"])
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "MODEL.DEVICE 'cuda': this machine has an NVIDIA GPU",
        "driver on your system is too old (found version 12040).",
        f"PyTorch {torch.__version__}, built for CUDA 13.0",
        "--index-url https://download.pytorch.org/whl/cu",
        "or MODEL.DEVICE cpu for the CPU",
    ):
        assert part in message
    assert "Please" not in message
    with pytest.raises(ConfigError, match="--num-gpus 2: this machine has an NVIDIA GPU"):
        check_gpus(2)
    with pytest.raises(ConfigError, match="this machine has an NVIDIA GPU"):
        default_device()  # of benchmarks
    assert load_config("", ["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"


def test_torch_without_cuda_beside_a_gpu(machine, monkeypatch):
    torch_says(monkeypatch, "Torch not compiled with CUDA enabled", cuda=None)
    smi(machine, "GPU 0: NVIDIA RTX A5000 (UUID: GPU-1)")
    with pytest.raises(ConfigError, match=r"\(GPU 0: NVIDIA RTX A5000\).*is built without CUDA: i"):
        load_config("", ["MODEL.DEVICE", "cuda:1"])


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_hidden_by_the_user_is_none(machine, monkeypatch, hidden):
    (machine / "dev" / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert load_config("", ["MODEL.DEVICE", "cuda"]).MODEL.DEVICE == "cpu"


@pytest.mark.parametrize("code", [0, 9])
def test_a_machine_without_a_gpu_computes_on_the_cpu(machine, log, code):
    """Also one with the driver's tools, or its control files, but no card."""
    (machine / "dev" / "nvidiactl").touch()
    smi(machine, "No devices were found" if code else "", code)
    cfg = load_config("", ["MODEL.DEVICE", "cuda"])
    assert cfg.MODEL.DEVICE == "cpu"
    assert "no CUDA device found: MODEL.DEVICE is cpu" in log.text


def test_a_tool_that_hangs_is_no_sign(machine, monkeypatch):
    def run(*args, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    smi(machine, "GPU 0")
    monkeypatch.setattr(subprocess, "run", run)
    assert devices.unusable_gpu() == ""


def test_a_gpu_that_works_is_not_looked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "_trace_of_gpu", lambda: pytest.fail("looked"))
    assert devices.unusable_gpu() == ""


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_other_accelerators_are_refused_where_there_are_none(kind):
    if devices._is_available(kind):
        pytest.skip("this machine has one")
    with pytest.raises(
        ConfigError, match=f"'{kind}': PyTorch .* finds no {kind} device on this ma"
    ):
        load_config("", ["MODEL.DEVICE", kind])


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_other_accelerators_are_taken_where_there_are_some(kind, monkeypatch):
    place = torch.backends.mps if kind == "mps" else torch.xpu
    monkeypatch.setattr(place, "is_available", lambda: True)
    monkeypatch.setattr(getattr(torch, kind), "device_count", lambda: 1)
    assert kind == load_config("", ["MODEL.DEVICE", kind]).MODEL.DEVICE
    with pytest.raises(ConfigError, match=f"this machine has 1 GPU, from {kind}:0 on"):
        load_config("", ["MODEL.DEVICE", f"{kind}:1"])


@pytest.mark.parametrize("device", ["ipu", "vulkan", "hpu"])
def test_devices_that_nothing_is_computed_on(device):
    with pytest.raises(ConfigError, match=f"MODEL.DEVICE '{device}': use cpu, cuda or cuda:NUMBER"):
        load_config("", ["MODEL.DEVICE", device])


def card(monkeypatch, capability: tuple[int, int], compiled: list[str]) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: compiled)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.version, "hip", None)
    return torch.device("cuda")


WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (12, 1), (13, 0)])
def test_cards_that_a_wheel_has_kernels_for(monkeypatch, capability):
    """Those of its major version from theirs on, and what the driver compiles for later ones."""
    assert devices.lacks_kernels(card(monkeypatch, capability, WHEEL)) == ""


@pytest.mark.parametrize("capability", [(7, 0), (6, 1), (11, 0)])
def test_cards_that_it_has_none_for(monkeypatch, capability):
    found = devices.lacks_kernels(card(monkeypatch, capability, WHEEL))
    major, minor = capability
    assert found.startswith(f"Tesla V100 is sm_{major}{minor}, and PyTorch")
    assert found.endswith("compute_120")


def test_bfloat16_before_ampere(monkeypatch):
    assert devices.lacks_bfloat16(card(monkeypatch, (7, 5), WHEEL))
    assert not devices.lacks_bfloat16(card(monkeypatch, (8, 0), WHEEL))
    assert not devices.lacks_bfloat16(torch.device("cpu"))


class Card:
    """``torch.cuda`` of a machine with several."""

    def __init__(self):
        self.current = 0
        self.states = {0: "a", 1: "b"}

    def device(self, index):
        outer = self

        class Current:
            def __enter__(self):
                self.before, outer.current = outer.current, index

            def __exit__(self, *error):
                outer.current = self.before

        return Current()

    def get_rng_state(self, device):
        return self.states[self.current if device.index is None else device.index]

    def set_rng_state(self, state, device):
        self.states[self.current if device.index is None else device.index] = state


def test_a_card_with_a_number_is_the_current_one_for_a_while(monkeypatch):
    cuda = Card()
    monkeypatch.setattr(devices, "device_runtime", lambda device: cuda)
    with devices.on_card(torch.device("cuda:1")):
        assert cuda.current == 1
        with devices.on_card(torch.device("cuda")):
            assert cuda.current == 1
    assert cuda.current == 0


def test_the_random_state_of_the_card_of_the_model_is_put_back(monkeypatch):
    cuda = Card()
    monkeypatch.setattr(devices, "device_runtime", lambda device: cuda)
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    with devices.random_state_kept(torch.device("cuda:1")):
        torch.rand(5)
        cuda.states[1] = "moved"
    assert cuda.states == {0: "a", 1: "b"}
    assert torch.equal(torch.rand(3), first)


def test_peak_memory_is_of_the_card_that_is_asked_about(monkeypatch):
    cuda = SimpleNamespace(
        max_memory_allocated=lambda device: 10 * device.index,
        max_memory_reserved=lambda device: 20 * device.index,
    )
    monkeypatch.setattr(devices, "device_runtime", lambda device: cuda)
    assert devices.peak_memory(torch.device("cuda:1")) == (10, 20)


def test_nothing_is_counted_on_the_cpu():
    assert devices.peak_memory(torch.device("cpu")) is None
    assert devices.device_name(torch.device("cpu")) == "cpu"
