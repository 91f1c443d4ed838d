import pytest

from analysis.cost.devices import device_names, find_device, require_device
from scaling.errors import UserError


@pytest.mark.parametrize(
    "name, device, tflops",
    [
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB", 312),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB", 312),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB", 312),
        ("A100-SXM-80GB (4x100Gb RoCE/node)", "A100 SXM 80GB", 312),
        ("A100 (8/node, 800 Gb/s node per config)", "A100 SXM 80GB", 312),
        ("NVIDIA H100 80GB HBM3", "H100 SXM 80GB", 989),
        ("NVIDIA H100 SXM5 80GB", "H100 SXM 80GB", 989),
        ("DGX-H100", "H100 SXM 80GB", 989),
        ("NVIDIA H100 PCIe", "H100 PCIe 80GB", 756),
        ("NVIDIA H100 NVL", "H100 NVL 94GB", 835.5),
        ("H200-SXM-141GB", "H200 SXM 141GB", 989),
        ("NVIDIA B200", "B200 SXM 180GB", 2250),
        ("B200-SXM", "B200 SXM 180GB", 2250),
        ("DGX-GB200", "GB200 NVL72", 2450),
        ("NVIDIA L4", "L4", 121),
        ("NVIDIA L40S", "L40S", 362),
        ("NVIDIA A10G", "A10G", 70),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 165.2),
        ("rtx4090", "RTX 4090", 165.2),
        ("AMD Instinct MI355X", "MI355X", 2500),
        ("Tesla V100-SXM2-16GB", "V100 SXM 16GB", 125),
        ("NVIDIA Tesla V100 DGXS 32 GB", "V100 SXM 32GB", 125),
        ("h100", "H100 SXM 80GB", 989),
    ],
)
def test_names_of_drivers_clouds_and_papers(name, device, tflops):
    found = find_device(name)
    assert (found.name, found.bf16_flops) == (device, tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    ["GeForce RTX 4090 Laptop GPU", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "H100 64GB", "NVIDIA L40", "96GB", "TPU", ""],
)
def test_a_similar_name_is_not_guessed(name):
    assert find_device(name) is None


def test_a_name_that_fits_several_variants_says_which_was_taken():
    assert find_device("A100").note == (
        "A100 is read as A100 SXM 80GB; it could also be A100 SXM 40GB, A100 PCIe 80GB, A100 PCIe 40GB"
    )
    assert find_device("A100-SXM4-80GB").note == ""


def test_a_remark_in_brackets_is_passed_over_and_said():
    found = find_device("H100-SXM-96GB (500 W, HBM2e 2.4 TB/s)")
    assert found.name == "H100 SXM 96GB" and "is read as H100 SXM 96GB" in found.note
    assert find_device("Gaudi2 (beside an H100)") is None


def test_what_torch_calls_mi250x_is_one_of_its_two_dies():
    assert find_device("AMD Instinct MI250X").bf16_flops == find_device("MI250X").bf16_flops / 2


def test_forms_of_one_chip_are_kept_apart():
    assert find_device("NVIDIA A100-SXM4-40GB").memory_bandwidth == 1555e9
    assert find_device("NVIDIA A100-SXM4-80GB").memory_bandwidth == 2039e9
    assert find_device("NVIDIA H100 PCIe").name == "H100 PCIe 80GB"


def test_an_export_version_differs_in_its_links_alone():
    h100, h800 = find_device("H100 SXM"), find_device("H800 SXM")
    assert h800.peak_flops == h100.peak_flops
    assert h800.scale_up_bandwidth == 200e9 < h100.scale_up_bandwidth == 450e9


def test_units_are_si():
    h100 = find_device("H100 SXM")
    assert h100.memory_bytes == 80 * 2**30
    assert h100.scale_out_bandwidth == 50e9
    assert (h100.scale_up_size, h100.gpus_per_node, h100.tdp_watts) == (8, 8, 700)


@pytest.mark.parametrize("name", device_names())
def test_every_device_is_whole_sourced_and_dense(name):
    device = require_device(name)
    assert device.name == name
    assert device.source and device.date >= "2026-01-01"
    assert min(device.memory_bytes, device.scale_up_bandwidth, device.scale_out_bandwidth, device.tdp_watts) > 0
    peaks = device.peak_flops
    assert device.bf16_flops == peaks.get("bf16", peaks["fp16"])
    assert peaks["fp32"] < peaks["fp16"]
    # half the width is twice as fast: a figure with sparsity at either precision would show
    assert peaks.get("fp8", 2 * device.bf16_flops) / device.bf16_flops == pytest.approx(2, rel=0.03)


def test_an_unknown_gpu_gets_the_nearest_names():
    with pytest.raises(UserError) as error:
        require_device("H100 64GB")
    assert str(error.value) == (
        "gpu = H100 64GB: not in the table: choose H100 SXM 80GB, H100 SXM 96GB, H100 PCIe 80GB, H100 NVL 94GB, "
        "or give your own device in a file"
    )
    with pytest.raises(UserError, match="gpu = A10O: not in the table: choose A10, A10G"):
        require_device("A10O")


def test_every_peak_has_a_source():
    assert "NVIDIA H100 datasheet" in find_device("H100").source


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("NVIDIA H200-SXM-141GB-CTS", "H200 SXM 141GB"),
        ("AMD Instinct MI300X 192GB HBM3", "MI300X"),
        ("AMD Instinct MI325X 256GB HBM3e", "MI325X"),
        ("A100-SXM4-80G", "A100 SXM 80GB"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA Blackwell GPU (GB200)", "GB200 NVL72"),
    ],
)
def test_names_of_benchmark_submissions(written, name):
    assert find_device(written).name == name
