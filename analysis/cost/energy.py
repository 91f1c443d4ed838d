"""Energy of a run: power of a GPU with its share of the node, by how busy it is, times hours and PUE.

    kW of one GPU = TDP x (0.50 + 0.80 x busy)

busy is the share of the time in which the GPUs compute; in the rest they wait for the network, for each other or for
the host. It is not the utilisation of the peak: a GPU that multiplies slowly, or waits for its own memory, draws as
much. At busy = 0.9 a node draws 1.22 times the TDP of its GPUs: host, network cards, fans and losses of the power
supply are in it. Switches, storage and the making of the hardware (embodied carbon) are not.

The two constants are set to the node power of MLPerf Training v4.0 to v5.0 (MEASURED_NODES). The low end comes from a
fine-tuning on 512 GPUs whose logs tell its busy share: it trains 86.5 samples/s where one node of 8 trains 2.08, which
is 0.65 of it per GPU, and with start-up and evaluations 0.54 over the whole run (samples and times of its log, node
power from another meter). Busy shares of the others are estimates: 0.95 where only NVLink is waited for, 0.9 with
a pipeline over 64 nodes, 0.85 where nothing is known.
"""

from dataclasses import dataclass

from analysis.cost.devices import Device
from analysis.cost.interval import Interval, known, log_normal, product
from scaling.errors import UserError

IDLE_SHARE, BUSY_SHARE = 0.50, 0.80
#: Spread of ln power around the line: measured nodes are within 8 %, other makers' fans and power supplies vary more.
_POWER_SPREAD = 0.07
#: Of published runs whose layout is not known, with its bounds.
TYPICAL_BUSY = Interval(0.85, 0.6, 1.0)
#: Of a GPU's share of its node's power, what its own board draws and its counter measures: a DGX H100's boards are 8 x
#: 700 W of at most 10.2 kW (NVIDIA's data sheet), 0.55; a board at its TDP in the busiest nodes below, 0.78. Between.
BOARD_SHARE = Interval(0.70, 0.55, 0.85)
#: PaLM reports 1.08, LLaMA assumes 1.1, OLMo 2 reports 1.12 and 1.2, BLOOM 1.2; the surveyed average of all
#: data centres is 1.56 (Uptime Institute Global Data Center Survey 2024).
TYPICAL_PUE = Interval(1.15, 1.08, 1.56)
#: Above these a number is a slip: the dirtiest grids have about 1,000 g CO2e per kWh.
_MOST_PUE, _MOST_GRAMS = 10.0, 1e4


@dataclass(frozen=True)
class MeasuredNode:
    """Power of one GPU with its share of the node, over its TDP, as measured; switches excluded."""

    run: str
    gpu: str
    num_gpus: int
    busy: float
    power_over_tdp: float
    source: str


MEASURED_NODES = (
    MeasuredNode("Llama 2 70B LoRA, AC", "H100 SXM 80GB", 8, 0.95, 1.278, "MLPerf Training v4.0 smc-ac-power"),
    MeasuredNode("Llama 2 70B LoRA, DC", "H100 SXM 80GB", 8, 0.95, 1.242, "MLPerf Training v4.0 smc-dc-power"),
    MeasuredNode("GPT-3 175B, AC", "H100 SXM 80GB", 512, 0.90, 1.223, "MLPerf Training v4.0 smc-ac-power"),
    MeasuredNode("GPT-3 175B, DC", "H100 SXM 80GB", 512, 0.90, 1.204, "MLPerf Training v4.0 smc-dc-power"),
    MeasuredNode("Llama 2 70B LoRA, strong-scaled", "H100 SXM 80GB", 512, 0.51, 0.907, "MLPerf v4.0 smc-ac-power"),
    MeasuredNode("Llama 2 70B LoRA, air-cooled", "H100 SXM 80GB", 64, 0.95, 1.271, "MLPerf Training v4.1 Dell"),
    MeasuredNode("Llama 2 70B LoRA", "B200 SXM 180GB", 8, 0.95, 1.198, "MLPerf Training v5.0 Lenovo"),
    MeasuredNode("GPT-3 175B", "V100 SXM 32GB", 10000, 0.85, 1.100, "Patterson et al. 2021 (arXiv:2104.10350) table 4"),
)


def node_power_watts(device: Device, busy: Interval = TYPICAL_BUSY) -> Interval | None:
    """Watts of one GPU with its share of the node, before PUE; None where its TDP is not known.

    Raises UserError for a share outside of 0 to 1.
    """
    if not 0 <= busy.low <= busy.value <= busy.high <= 1:
        raise UserError(f"busy = {busy.value:g}: must be a share of the time between 0 and 1")
    if not device.tdp_watts:
        return None
    low, value, high = (device.tdp_watts * (IDLE_SHARE + BUSY_SHARE * share) for share in _bounds(busy))
    return product(Interval(value, low, high), log_normal(1.0, _POWER_SPREAD))


def energy_kwh(
    device: Device, gpu_hours: Interval, busy: Interval = TYPICAL_BUSY, pue: Interval = TYPICAL_PUE
) -> Interval | None:
    """kWh at the meter of the building for so many GPU-hours; None where the device's TDP is not known.

    `known(x)` is for a busy share or a PUE (power usage effectiveness, the building's power over the machines') that
    one knows. Raises UserError for a PUE below 1 and a busy share outside of 0 to 1.
    """
    if not 1 <= pue.low <= pue.value <= pue.high <= _MOST_PUE:
        raise UserError(
            f"pue = {pue.value:g}: must be from 1 to {_MOST_PUE:g}, the building's power over the machines'"
        )
    power = node_power_watts(device, busy)
    return None if power is None else product(product(gpu_hours, power), pue).scaled(1e-3)


def board_joules(device: Device, gpu_hours: Interval, busy: Interval = TYPICAL_BUSY) -> Interval | None:
    """Joules that the GPUs' own counters (NVML) show after so many GPU-hours; None where the TDP is not known."""
    power = node_power_watts(device, busy)
    return None if power is None else product(product(gpu_hours, power), BOARD_SHARE).scaled(3600.0)


def co2_kg(energy: Interval, grams_per_kwh: float) -> Interval:
    """kg CO2e of the electricity, at a grid's intensity in g CO2e per kWh, which the user gives: it varies by 50 times.

    Raises UserError for an intensity that is not a number of 0 or more.
    """
    if not 0 <= grams_per_kwh <= _MOST_GRAMS:
        raise UserError(f"grid carbon intensity = {grams_per_kwh}: must be from 0 to {_MOST_GRAMS:g} g CO2e per kWh")
    return product(energy, known(grams_per_kwh / 1e3))


def _bounds(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.value, interval.high
