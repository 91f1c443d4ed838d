import json

import pytest
import yaml

from analysis.cost.device_file import load_device, refuse_sparse_peak
from analysis.cost.devices import find_device
from analysis.cost.tables import read_table
from scaling.errors import UserError

ENTRY = {
    "device": "Example X1",
    "tflops": {"bf16": 400, "fp8": 800},
    "memory": {"gib": 64, "gbytes_per_second": 3000},
    "scale_up": {"gpus": 4, "gbytes_per_second": 100},
    "node": {"gpus": 4, "gbits_per_second_per_gpu": 200},
    "tdp_watts": 500,
}


def write(folder, **changes):
    path = folder / "device.yaml"
    entry = {name: value for name, value in (ENTRY | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(entry))
    return path


def test_a_device_of_ones_own(tmp_path):
    device = load_device(write(tmp_path))
    assert (device.name, device.bf16_flops, device.peak_flops["fp8"]) == ("Example X1", 400e12, 800e12)
    assert (device.memory_bytes, device.scale_up_size, device.scale_out_bandwidth) == (64 * 2**30, 4, 25e9)
    assert device.source.endswith("device.yaml") and device.date


def test_the_same_in_json(tmp_path):
    path = tmp_path / "device.json"
    path.write_text(json.dumps(ENTRY | {"source": "vendor", "date": "2026-11-01"}))
    assert (load_device(path).source, load_device(path).date) == ("vendor", "2026-11-01")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tdp_watts": None}, "tdp_watts: is missing"),
        ({"memroy": 1}, "memroy: is not a field: choose from device, tflops, memory"),
        ({"memory": {"gib": -1, "gbytes_per_second": 1}}, "memory.gib = -1: must be a number greater than 0"),
        ({"memory": {"gib": 1}}, "memory.gbytes_per_second: is missing"),
        ({"memory": 80}, "memory = 80: must hold gib, gbytes_per_second"),
        ({"tflops": {"bf17": 1}}, "tflops.bf17: is not a field"),
        ({"tflops": {"fp8": 800}}, "tflops: needs the dense peak in bf16, fp16 or fp32"),
        ({"tflops": {"bf16": 1e300}}, "tflops.bf16 = 1e+300: must be a number greater than 0, at most"),
        ({"tflops": {"bf16": "fast"}}, "tflops.bf16 = fast: must be a number"),
        ({"node": {"gpus": 2.5, "gbits_per_second_per_gpu": 1}}, "node.gpus = 2.5: must be a whole number"),
        ({"device": ""}, "device = : must be a name"),
        ({"date": "yesterday"}, "date = yesterday: must be the day of the figures, such as 2026-10-01"),
        ({"date": 2026}, "date = 2026: must be the day"),
        ({"source": [1]}, "source = [1]: must be text"),
        ({"source": " "}, "must be text, such as the name of a datasheet"),
    ],
)
def test_each_field_is_checked(tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        load_device(write(tmp_path, **changes))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_is_never_executed(tmp_path):
    path = tmp_path / "device.yaml"
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="cannot be read as a device"):
        load_device(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.yaml: cannot be read as a device"):
        load_device(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "name, precision, tflops, dense",
    [
        ("H100", "bf16", 1979, 989),
        ("NVIDIA H100 80GB HBM3", "fp8", 3958, 1979),
        ("my A100", "bf16", 624, 312),
        ("H100 PCIe", "bf16", 1513, 756),
        ("MI300X", "fp8", 5229.8, 2614.9),
        # as vendors round them
        ("L40S", "bf16", 733, 362),
        ("GB200", "bf16", 5000, 2450),
        ("GB200", "fp8", 10000, 4900),
        ("H100", "bf16", 2000, 989),
        ("H100", "fp8", 4000, 1979),
    ],
)
def test_a_peak_with_sparsity_is_refused(tmp_path, name, precision, tflops, dense):
    with pytest.raises(UserError, match=f"with sparsity, which training has not: give the dense {dense}"):
        refuse_sparse_peak(name, precision, tflops * 1e12)
    with pytest.raises(UserError, match=f"give the dense {dense}"):
        load_device(write(tmp_path, device=name, tflops={"bf16": 1, precision: tflops}))


def test_a_dense_peak_is_let_through():
    for name in ("H100", "A100", "B200", "Example X1"):
        refuse_sparse_peak(name, "bf16", (find_device(name) or find_device("H100")).bf16_flops)
    for entry in read_table("devices.yaml"):  # a whole MI250X has twice the peak of its half
        for precision, tflops in entry["tflops"].items():
            refuse_sparse_peak(entry["device"], precision, tflops * 1e12)
            refuse_sparse_peak(entry["device"], precision, tflops * 1.02e12)
