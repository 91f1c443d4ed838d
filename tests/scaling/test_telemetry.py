"""What a run used, with a fake NVML in the place of NVIDIA's."""

import os
import sys
import time
import types

import pytest
import torch

from scaling import telemetry
from scaling.record import Speed

CUDA = torch.device("cuda")


@pytest.fixture
def nvml(monkeypatch):
    """A pynvml module with one GPU, whose readings a test may change."""
    fake = types.ModuleType("pynvml")
    fake.NVMLError = type("NVMLError", (Exception,), {})
    fake.readings = {"power": [200_000], "energy": 5_000_000, "used": 3 * 2**30, "busy": 90}
    fake.failing = set()

    def function(name, value):
        def call(*arguments):
            if name in fake.failing:
                raise fake.NVMLError("Not Supported")
            return value(*arguments)

        setattr(fake, name, call)

    def handle(uuid):
        if uuid != "GPU-abc":
            raise fake.NVMLError("Not Found")
        return uuid

    readings = fake.readings
    function("nvmlInit", lambda: None)
    function("nvmlDeviceGetHandleByUUID", handle)
    function(
        "nvmlDeviceGetPowerUsage",
        lambda gpu: readings["power"].pop(0) if readings["power"][1:] else readings["power"][0],
    )
    function("nvmlDeviceGetTotalEnergyConsumption", lambda gpu: readings["energy"])
    function("nvmlDeviceGetMemoryInfo", lambda gpu: types.SimpleNamespace(used=readings["used"]))
    function("nvmlDeviceGetUtilizationRates", lambda gpu: types.SimpleNamespace(gpu=readings["busy"], memory=10))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="abc"))
    return fake


def test_readings_come_in_watts_joules_bytes_and_percent(nvml):
    gpu = telemetry.Gpu(CUDA)
    assert gpu.nvml == "NVML"
    assert (gpu.power_watts(), gpu.energy_joules()) == (200.0, 5000.0)
    assert (gpu.memory_used_bytes(), gpu.utilization_percent()) == (3 * 2**30, 90.0)


def test_energy_is_counted_from_the_start(nvml):
    meter = telemetry.EnergyMeter(CUDA)
    nvml.readings["energy"] += 12_500
    assert meter.read() == 12.5 and meter.source == "NVML total energy counter"


def test_a_gpu_without_the_sensor_gives_null_and_the_others_stay(nvml):
    nvml.failing = {"nvmlDeviceGetTotalEnergyConsumption"}
    meter = telemetry.EnergyMeter(CUDA)
    assert meter.read() is None and meter.source == "no counter: not on this GPU"
    assert telemetry.Gpu(CUDA).power_watts() == 200.0


def test_the_sampler_gives_means_by_interval_and_mean_and_maximum_of_the_run(nvml):
    nvml.readings["power"] = [100_000, 300_000, 200_000]
    sampler = telemetry.GpuSampler(telemetry.Gpu(CUDA), seconds=0.001)
    first = sampler.read()
    assert first["power_watts"] >= 100.0 and first["gpu_memory_used_bytes"] == 3 * 2**30
    deadline = time.monotonic() + 60
    while len(nvml.readings["power"]) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    sampler.close()
    summary = sampler.summary()
    assert summary["power_watts_max"] == 300.0 and 100.0 < summary["power_watts_mean"] < 300.0
    assert (summary["gpu_utilization_percent"], summary["nvml"]) == (90.0, "NVML")
    sampler.read()
    assert sampler.read()["power_watts"] is None, "an interval without a sample"


@pytest.mark.parametrize(
    "device, failing, uuid, reason",
    [
        ("cpu", set(), "abc", "no NVIDIA GPU: the run is on cpu"),
        ("cuda", {"nvmlInit"}, "abc", "no NVIDIA driver: Not Supported"),
        ("cuda", set(), "other", "NVML does not know GPU-other: Not Found"),
    ],
)
def test_without_nvml_everything_is_null_with_the_reason(nvml, monkeypatch, device, failing, uuid, reason):
    nvml.failing = failing
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid=uuid))
    sampler = telemetry.GpuSampler(telemetry.Gpu(torch.device(device)))
    assert set(sampler.read().values()) == {None}
    summary = sampler.summary()
    assert summary.pop("nvml") == reason
    assert set(summary.values()) == {None}
    meter = telemetry.EnergyMeter(torch.device(device))
    assert meter.read() is None and meter.source == f"no counter: {reason}"
    sampler.close()


def test_the_samplers_summary_fits_the_record(nvml):
    assert set(telemetry.GpuSampler(telemetry.Gpu(torch.device("cpu"))).summary()) <= set(Speed.model_fields)


def test_host_memory_is_of_this_process_and_this_machine():
    block = bytearray(64 * 2**20)
    block[:: os.sysconf("SC_PAGE_SIZE")] = b"x" * len(block[:: os.sysconf("SC_PAGE_SIZE")])
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 64 * 2**20 < telemetry.host_peak_memory_bytes() < physical
    available = telemetry.host_available_memory_bytes()
    assert available is None or 0 < available < physical
