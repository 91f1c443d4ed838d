"""Everything that a run is estimated to need: FLOPs, memory, time, energy, dollars; each estimate with its interval.

Errors of the parts are of logarithms and independent, so that they add up in quadrature (analysis.cost.interval):

    GPU-hours = train_steps x step time x GPUs / goodput
    energy    = GPU-hours x power of a GPU with its share of the node x PUE
    dollars   = GPU-hours x price

Where the user says nothing of how the model is divided, its layout is only a guess, and GPU-hours are those of
published runs like it (analysis.cost.run_utilisation), which know it better: over these 80 runs, each family predicted
from the others, their median error is 18 %; that of the guessed layout's step time over goodput 33 %, which says 0.7 of
what they took in the median.
"""

import math
from dataclasses import dataclass, field

from analysis.cost.calibration import Calibration, constants_for
from analysis.cost.counts import FLOP_CONVENTIONS, ParameterCount, flops_per_token, parameters
from analysis.cost.device_step import device_step_interval, device_step_time
from analysis.cost.devices import Device
from analysis.cost.energy import TYPICAL_BUSY, TYPICAL_PUE, co2_kg, energy_kwh
from analysis.cost.goodput import goodput, known_goodput
from analysis.cost.interval import Interval, known, product, quotient
from analysis.cost.layouts import on_more_gpus
from analysis.cost.memory import MemoryEstimate, fits, memory
from analysis.cost.memory_remedies import Remedy, remedies
from analysis.cost.prices import Price
from analysis.cost.run_relative import relative_gpu_seconds
from analysis.cost.run_utilisation import RunFacts, run_gpu_hours, unlike_published
from analysis.cost.setup import Setup
from analysis.cost.step import StepTime, busy_share

#: 6ND of the smallest published run that run_utilisation has learnt from is 7e18.
_SMALLEST_PUBLISHED = 5e18
#: Published hours know 6ND alone. In the runs behind them attention adds at most a third; in longer sequences far more.
_MOST_ATTENTION = 1.5
_MOST_REMEDIES = 3


@dataclass(frozen=True)
class Assumptions:
    """What the user knows beside the setup; None where they leave it to us."""

    price: Price | None = None
    goodput: float | None = None
    #: Power of the building over that of its machines.
    pue: float | None = None
    #: Of the grid, g CO2e per kWh.
    carbon_intensity: float | None = None
    calibration: Calibration | None = None
    #: Whether the user has left the layout open.
    layout_is_guessed: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a run on `tokens` tokens needs; None for what cannot be known of this device."""

    setup: Setup
    tokens: float
    parameters: ParameterCount
    #: FLOPs of the whole run by convention (analysis.cost.counts).
    flops: dict[str, float]
    memory: MemoryEstimate
    fits: bool
    #: What would make it fit, best first; empty where it fits.
    remedies: list[Remedy]
    #: Where none of them is enough: the fewest GPUs, doubling, on which a layout fits; None where it is not known.
    enough_gpus: int | None
    step: StepTime
    step_seconds: Interval
    #: Dense peak that utilisations are relative to, FLOP/s.
    peak_flops: float
    #: Of the whole run, pauses included.
    gpu_hours: Interval
    #: The same from the step time and goodput: equal to gpu_hours unless that is of published runs.
    gpu_hours_from_step: Interval
    #: And from published runs alone; None where they say nothing of such a run.
    gpu_hours_published: Interval | None
    from_published_runs: bool
    #: What of the run is outside of what the published ones show.
    unlike_published: list[str]
    goodput: Interval
    #: At the meter of the building.
    energy_kwh: Interval | None
    pue: Interval
    busy: Interval
    co2_kg: Interval | None
    usd: Interval | None
    assumptions: Assumptions = field(repr=False)

    @property
    def train_steps(self) -> int:
        """Optimizer steps of the run."""
        return math.ceil(self.tokens / self.setup.tokens_per_step)

    @property
    def tokens_per_second_per_gpu(self) -> Interval:
        """While it trains."""
        return quotient(self.setup.tokens_per_step / self.setup.num_gpus, self.step_seconds)

    def mfu(self, convention: str) -> Interval:
        """Share of `peak_flops` while it trains, under a convention of `flops`."""
        of_one_step = self.flops[convention] / self.tokens * self.setup.tokens_per_step
        return quotient(of_one_step / (self.setup.num_gpus * self.peak_flops), self.step_seconds)

    @property
    def wall_hours(self) -> Interval:
        """Hours from the first step to the last, pauses included."""
        return self.gpu_hours.scaled(1 / self.setup.num_gpus)


def estimate(setup: Setup, tokens: float, assumptions: Assumptions) -> Estimate:
    """Everything about a run of `setup` on `tokens` tokens.

    Raises UserError for a goodput, a PUE or a carbon intensity that is none.
    """
    model, calibration = setup.model, assumptions.calibration
    flops = {name: tokens * _flops_per_token(setup, name) for name in FLOP_CONVENTIONS}
    held = memory(setup)
    enough = fits(held, setup.device)
    seconds = device_step_interval(setup, calibration)
    step = device_step_time(setup, constants_for(setup, calibration))

    # the user's own number may be a guess of theirs, but it is theirs
    share = goodput(setup.num_gpus) if assumptions.goodput is None else known_goodput(assumptions.goodput)
    steps_hours = seconds.scaled(tokens / setup.tokens_per_step * setup.num_gpus / 3600)
    from_step = product(steps_hours, quotient(1.0, share))
    facts = _facts(setup, tokens)
    of_others = None
    if _published_runs_speak(setup, flops):
        of_others = run_gpu_hours(facts).scaled(relative_gpu_seconds(setup, flops["c_6nd"]))
    guessed = assumptions.layout_is_guessed and assumptions.goodput is None and calibration is None
    hours = of_others if guessed and of_others else from_step
    published = hours is of_others

    busy = TYPICAL_BUSY if published else busy_share(step)
    pue = TYPICAL_PUE if assumptions.pue is None else known(assumptions.pue)
    energy = energy_kwh(setup.device, hours, busy, pue)
    intensity, price = assumptions.carbon_intensity, assumptions.price
    helps = [] if enough else remedies(setup)[:_MOST_REMEDIES]
    return Estimate(
        setup=setup,
        tokens=tokens,
        parameters=parameters(model),
        flops=flops,
        memory=held,
        fits=enough,
        remedies=helps,
        enough_gpus=None if enough or any(remedy.fits for remedy in helps) else _enough_gpus(setup),
        step=step,
        step_seconds=seconds,
        peak_flops=reference_peak(setup.device, setup.precision),
        gpu_hours=hours,
        gpu_hours_from_step=from_step,
        gpu_hours_published=of_others,
        from_published_runs=published,
        unlike_published=unlike_published(facts) if published else [],
        goodput=share,
        energy_kwh=energy,
        pue=pue,
        busy=busy,
        co2_kg=None if energy is None or intensity is None else co2_kg(energy, intensity),
        usd=None if price is None else product(hours, Interval(price.mid, price.low, price.high)),
        assumptions=assumptions,
    )


def reference_peak(device: Device, precision: str) -> float:
    """The dense peak that utilisations are given against, FLOP/s: of 16-bit products, or of float32 ones in float32.

    8- and 4-bit training is measured against the 16-bit peak too, so that utilisations compare; it may pass 1.
    """
    return device.dense_peak("fp32" if precision == "fp32" else "bf16")


def _flops_per_token(setup: Setup, convention: str) -> float:
    """Of full recomputation, the share of the layers that it is applied to."""
    mode = setup.recompute_granularity
    none, chosen = (flops_per_token(setup.model, setup.seq_length, convention, each) for each in ("none", mode))
    return none + (chosen - none) * (setup.recompute_share if mode == "full" else 1.0)


def _enough_gpus(setup: Setup) -> int | None:
    larger = None if setup.device.is_cpu_core else on_more_gpus(setup)
    return None if larger is None else larger.setup.num_gpus


def _published_runs_speak(setup: Setup, flops: dict[str, float]) -> bool:
    like = flops["c_6nd"] >= _SMALLEST_PUBLISHED and flops["causal"] <= _MOST_ATTENTION * flops["c_6nd"]
    return like and not setup.device.is_cpu_core


def _facts(setup: Setup, tokens: float) -> RunFacts:
    count = parameters(setup.model)
    return RunFacts(count.total, tokens, setup.device, count.active)
