import pytest

from analysis.cost.measured_network import parse_network


@pytest.mark.parametrize(
    "text, gbits_per_gpu",
    [
        ("A100 (8/node, 800 Gb/s node per config)", 100),
        ("A100-SXM-80GB (4x100Gb RoCE/node)", 50),
        ("8x400Gb/s InfiniBand", 400),
        ("3.2 Tbps, 4/node", 800),
        ("400 Gb/s per GPU", 400),
        ("50 GB/s per GPU", 400),
    ],
)
def test_a_rate_of_the_node_is_shared_by_its_gpus(text, gbits_per_gpu):
    assert parse_network(text) == gbits_per_gpu * 1e9 / 8


def test_the_nodes_size_may_be_given():
    assert parse_network("400 Gb/s node", gpus_per_node=4) == 12.5e9


@pytest.mark.parametrize("text", ["A100-80GB", "8x80GB", "DGX-H100", ""])
def test_memory_is_no_network(text):
    assert parse_network(text) is None
