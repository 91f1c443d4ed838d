"""Seconds that collectives take, by size, ranks and where these lie.

A ring over n ranks passes (n - 1) / n of the buffer through every rank (Thakur et al. 2005, section 4), and all-reduce
is reduce-scatter and all-gather. Ranks are laid out with `stride` others between neighbours (tensor ranks innermost,
then context, data and pipeline ranks, as in Megatron). A group that leaves the fast links of its domain sends through
the network cards of the ranks it has there: each of the `stride` groups beside it has its share of the node's cards.
"""

import math

from analysis.cost.devices import Device
from analysis.cost.stacks import Constants


def group_bandwidth(size: int, stride: int, device: Device, constants: Constants) -> float:
    """Bytes/s of one rank in a ring of `size` ranks, one direction."""
    links = device.scale_up_bandwidth * constants.link_efficiency
    if size * stride <= device.scale_up_size:
        return links
    inside = max(1, min(size, device.scale_up_size // stride))
    return min(links, device.scale_out_bandwidth * constants.network_efficiency * inside) or links


def gather_seconds(num_bytes: float, size: int, stride: int, device: Device, constants: Constants) -> float:
    """All-gather to, or reduce-scatter of, a buffer of `num_bytes` over `size` ranks."""
    if size <= 1:
        return 0.0
    inside = size * stride <= device.scale_up_size
    latency = constants.link_latency if inside else constants.network_latency
    return (size - 1) / size * num_bytes / group_bandwidth(size, stride, device, constants) + latency * math.log2(size)


def all_to_all_seconds(num_bytes: float, size: int, stride: int, device: Device, constants: Constants) -> float:
    """Every rank sends `num_bytes` in equal parts to all `size` ranks, itself included.

    Where the group leaves the fast links, the part that does goes through the rank's own network card.
    """
    if size <= 1:
        return 0.0
    links = device.scale_up_bandwidth * constants.link_efficiency
    inside = max(1, min(size, device.scale_up_size // stride))
    seconds = (inside - 1) / size * num_bytes / links + constants.link_latency
    if inside < size:
        network = device.scale_out_bandwidth * constants.network_efficiency or links
        seconds = max(seconds, (size - inside) / size * num_bytes / network) + constants.network_latency
    return seconds


def send_seconds(num_bytes: float, crosses_nodes: bool, device: Device, constants: Constants) -> float:
    """One message from a rank to another."""
    if crosses_nodes and device.scale_out_bandwidth:
        return num_bytes / (device.scale_out_bandwidth * constants.network_efficiency) + constants.network_latency
    return num_bytes / (device.scale_up_bandwidth * constants.link_efficiency or math.inf) + constants.link_latency
