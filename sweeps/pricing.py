"""Which device a plan is priced on, and at what price."""

from analysis.cost.devices import CPU_CORE
from analysis.cost.prices import own_price, price_for
from sweeps.grid import Profile
from sweeps.machine import Machine
from sweeps.plan import DevicePrice, Dollars, Workers


def training_device(workers: Workers, machine: Machine, profile: Profile) -> str:
    """The device that cells train on, by the name that run records carry.

    On a cluster's login node, and where a GPU is only reckoned with, it is the GPU that the profile names.
    """
    if workers.device == "cpu":
        return machine.cpu_model
    if machine.gpus and workers.executor == "local":
        return machine.gpus[0].name
    return profile.gpu or "unknown GPU"


def find_price(workers: Workers, device: str, usd_per_hour: float | None) -> tuple[DevicePrice | None, list[str]]:
    """The price of a device-hour (a GPU, or a core of a CPU), and what is to be said about it.

    `usd_per_hour` is the user's own price. None when none is known.
    """
    priced = CPU_CORE if workers.device == "cpu" else device
    price = price_for(priced) if usd_per_hour is None else own_price(usd_per_hour, priced)
    if price is None:
        return None, []
    warning = price.warning()
    return (
        DevicePrice(
            device=price.device,
            usd_per_device_hour=Dollars(low=price.low, mid=price.mid, high=price.high),
            date=price.date.isoformat(),
            provider=price.provider,
            source=price.source,
        ),
        [f"{warning} with --price"] if warning else [],
    )
