"""What collectives take: sizes, and where the ranks lie."""

import math

import pytest

from analysis.cost.collectives import all_to_all_seconds, gather_seconds, group_bandwidth, send_seconds
from analysis.cost.devices import require_device
from analysis.cost.stacks import constants_of

H100 = require_device("H100 SXM 80GB")
CONSTANTS = constants_of("megatron")
GIB = 2.0**30


def test_a_group_inside_a_node_uses_the_fast_links_and_a_wider_one_its_share_of_the_cards():
    links = H100.scale_up_bandwidth * CONSTANTS.link_efficiency
    card = H100.scale_out_bandwidth * CONSTANTS.network_efficiency
    assert group_bandwidth(8, 1, H100, CONSTANTS) == links
    # 16 data ranks beside 8 tensor ranks: one of them in each node, so one card; beside 2: four of them
    assert group_bandwidth(16, 8, H100, CONSTANTS) == pytest.approx(card)
    assert group_bandwidth(16, 2, H100, CONSTANTS) == pytest.approx(4 * card)
    # never faster than the links inside
    assert group_bandwidth(64, 1, H100, CONSTANTS) == pytest.approx(min(links, 8 * card))


def test_gather_moves_all_but_its_own_part_and_one_rank_nothing():
    assert gather_seconds(GIB, 1, 1, H100, CONSTANTS) == 0.0
    latency = 3 * CONSTANTS.link_latency
    moved = (gather_seconds(GIB, 8, 1, H100, CONSTANTS) - latency) * group_bandwidth(8, 1, H100, CONSTANTS)
    assert moved == pytest.approx(7 / 8 * GIB)


def test_exchange_across_nodes_waits_for_the_card_alone():
    inside = all_to_all_seconds(GIB, 8, 1, H100, CONSTANTS)
    across = all_to_all_seconds(GIB, 64, 1, H100, CONSTANTS)
    card = H100.scale_out_bandwidth * CONSTANTS.network_efficiency
    assert across == pytest.approx(56 / 64 * GIB / card + CONSTANTS.network_latency)
    assert across > 4 * inside


def test_a_message_to_another_node_is_slower():
    near, far = (send_seconds(GIB, crosses, H100, CONSTANTS) for crosses in (False, True))
    assert far > near > 0 and math.isfinite(far)
