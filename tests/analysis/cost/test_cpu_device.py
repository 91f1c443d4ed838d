from analysis.cost.cpu_device import cpu_device


def test_a_core_of_this_machine():
    core = cpu_device()
    assert core.is_cpu_core and core.name == "CPU core"
    assert 1e8 < core.bf16_flops == core.peak_flops["fp32"] < 1e13
    assert 1e8 < core.memory_bandwidth < 1e12
    assert core.memory_bytes > 2**26 and core.gpus_per_node >= 1
    assert core.tdp_watts == 0
