import statistics

import pytest

from analysis.cost.devices import require_device
from analysis.cost.energy import MEASURED_NODES, co2_kg, energy_kwh, node_power_watts
from analysis.cost.interval import Interval, known
from scaling.errors import UserError

H100 = require_device("H100 SXM")


def power_over_tdp(node):
    device = require_device(node.gpu)
    return node_power_watts(device, known(node.busy)).value / device.tdp_watts


@pytest.mark.parametrize("node", MEASURED_NODES, ids=lambda node: f"{node.run} {node.gpu} {node.num_gpus}")
def test_measured_nodes_are_within_ten_percent(node):
    assert power_over_tdp(node) == pytest.approx(node.power_over_tdp, rel=0.10)


def test_measured_nodes_are_in_the_interval():
    for node in MEASURED_NODES:
        power = node_power_watts(require_device(node.gpu), known(node.busy))
        assert power.low <= node.power_over_tdp * require_device(node.gpu).tdp_watts <= power.high


def test_tdp_times_hours_is_a_fifth_low_on_busy_nodes():
    busy = [node.power_over_tdp for node in MEASURED_NODES if node.busy >= 0.9]
    assert 1 - 1 / statistics.median(busy) == pytest.approx(0.19, abs=0.02)


def test_energy_of_a_measured_run():
    # GPT-3 175B on 512 H100 for 56.865 minutes: 415.4 kWh at the nodes
    hours = known(512 * 56.865 / 60)
    assert energy_kwh(H100, hours, known(0.9), known(1.0)).value == pytest.approx(415.4, rel=0.02)


def test_uncertainty_of_hours_busy_share_and_pue_adds_up():
    exact = energy_kwh(H100, known(1000.0), known(0.9), known(1.2))
    unsure = energy_kwh(H100, Interval(1000.0, 800.0, 1250.0))
    assert exact.low < exact.value < exact.high
    assert unsure.high / unsure.value > exact.high / exact.value > 1.1
    assert unsure.low < 700 < unsure.high


def test_a_device_of_unknown_power_has_no_energy():
    from dataclasses import replace

    assert energy_kwh(replace(H100, tdp_watts=0.0), known(10.0)) is None


def test_carbon_is_of_the_grid_that_the_user_names():
    assert co2_kg(Interval(100.0, 90.0, 110.0), 50.0) == Interval(
        pytest.approx(5.0), pytest.approx(4.5), pytest.approx(5.5)
    )
    assert co2_kg(known(100.0), 0.0).value == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: energy_kwh(H100, known(1.0), pue=known(0.9)), "pue = 0.9: must be from 1 to 10"),
        (lambda: node_power_watts(H100, known(1.2)), "busy = 1.2: must be a share of the time"),
        (lambda: co2_kg(known(1.0), -1.0), "grid carbon intensity = -1.0: must be from 0"),
        (lambda: co2_kg(known(1.0), float("nan")), "grid carbon intensity = nan"),
    ],
)
def test_impossible_input_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
