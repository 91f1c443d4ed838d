"""The share of a run's GPU-hours in which it advances: the rest goes to failures, restarts, evaluation and stalls.

    goodput = base / (1 + interruptions per GPU-hour x GPUs x hours lost to one)

An interruption costs a restart and, on average, half of what was trained since the last checkpoint. The more GPUs, the
more often one of them fails: at 16,384 GPUs every three hours. base holds what does not grow with the GPUs: evaluation,
writing of checkpoints, stalls, loss spikes that are trained again, planned maintenance.

Step time and hours of published runs say what it comes to: Megatron-Turing NLG 530B 0.73 (utilisation 0.22 over the
run, 0.30 in a step), Llama 3.1 405B 0.84 (0.346, 0.41; "higher than 90 % effective training time", arXiv:2407.21783),
BLOOM 0.88 (366e9 tokens at 102 s for 4.19e6, in 1,082,990 GPU-hours), BloombergGPT 0.99 (139,200 steps of 32.5 s in 53
days). The two in the middle give base, the ends its bounds.
"""

from analysis.cost.interval import Interval, known
from scaling.errors import UserError

#: 419 unexpected interruptions in 54 days on 16,384 H100 (Llama 3, arXiv:2407.21783, section 3.3.4).
INTERRUPTIONS_PER_GPU_HOUR = 419 / (54 * 24 * 16384)
#: Hours that one costs: a restart, and half of the time between two checkpoints (judgements).
HOURS_LOST = 0.15 + 0.25 / 2
#: All that does not grow with the number of GPUs.
BASE = Interval(0.90, 0.74, 0.99)


def availability(num_gpus: int) -> float:
    """Share of the time that is not lost to interruptions when `num_gpus` train as one job."""
    return 1.0 / (1.0 + INTERRUPTIONS_PER_GPU_HOUR * num_gpus * HOURS_LOST)


def goodput(num_gpus: int) -> Interval:
    """Share of the GPU-hours in which a run on `num_gpus` (1 or more) advances; `known_goodput` where one knows it."""
    return BASE.scaled(availability(num_gpus))


def known_goodput(share: float) -> Interval:
    """The user's own goodput, without error. Raises UserError when it is no share."""
    if not 0 < share <= 1:
        raise UserError(f"goodput = {share:g}: must be a share of the time, above 0 and at most 1")
    return known(share)
