"""Dated prices of device-hours: low, mid and high, with provider and source.

A price without a date is a rumour: every quote in prices.yaml has one, and a price older than six
months says so wherever it is used.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from analysis.cost.devices import CPU_CORE, find_device
from analysis.cost.tables import read_table
from scaling.errors import UserError

_STALE_AFTER = timedelta(days=183)
#: Above it a price is a slip of the keyboard.
MOST_USD = 1e6


@dataclass(frozen=True)
class Price:
    """USD for one device-hour; a device is a GPU, or a logical core of a CPU."""

    device: str
    low: float
    mid: float
    high: float
    unit: str
    #: Day of the oldest quote behind it.
    date: date
    provider: str
    source: str
    #: Day of the newest quote behind it; None: the same day.
    newest: date | None = None

    def warning(self, today: date | None = None) -> str | None:
        """One line when the price is older than six months or has a quote of a day to come, else None."""
        today = today or date.today()
        newest = self.newest or self.date
        if newest > today:
            return (
                f"the price of {self.device} is from {newest.isoformat()}, a day to come: correct the date of its quote"
            )
        age = today - self.date
        if age <= _STALE_AFTER:
            return None
        return (
            f"the price of {self.device} is from {self.date.isoformat()}, {age.days // 30} months ago: "
            f"give your own in {self.unit}"
        )


def price_for(device_name: str) -> Price | None:
    """The price of a device: a GPU by the name the driver reports or its short name, or `CPU_CORE`.

    low, mid and high are the minimum, median and maximum of the on-demand quotes. None when the
    table has no quote: nothing is guessed.
    """
    known = find_device(device_name)
    device = known.name if known else device_name
    entry = read_table("prices.yaml").get(device)
    return None if entry is None else price_of_quotes(device, entry["quotes"])


def price_of_quotes(device: str, quotes: Sequence[Mapping[str, Any]]) -> Price:
    """The price of a device from its quotes, each with `usd`, `date`, `provider` and `source`."""
    quotes = sorted(quotes, key=lambda quote: quote["usd"])
    amounts = [quote["usd"] for quote in quotes]
    return Price(
        device=device,
        low=amounts[0],
        mid=statistics.median(amounts),
        high=amounts[-1],
        unit=_unit(device),
        date=min(quote["date"] for quote in quotes),
        provider=", ".join(quote["provider"] for quote in quotes),
        source="; ".join(dict.fromkeys(quote["source"] for quote in quotes)),
        newest=max(quote["date"] for quote in quotes),
    )


def own_price(usd_per_hour: float, device: str, today: date | None = None) -> Price:
    """The user's own price, USD for one device-hour, as low, mid and high.

    Raises UserError when it is negative or not a number.
    """
    if not 0 <= usd_per_hour <= MOST_USD:
        raise UserError(f"price = {usd_per_hour}: must be from 0 to {MOST_USD:g} US dollars per device-hour")
    return Price(
        device=device,
        low=usd_per_hour,
        mid=usd_per_hour,
        high=usd_per_hour,
        unit=_unit(device),
        date=today or date.today(),
        provider="your own",
        source="your own",
    )


def _unit(device: str) -> str:
    return "USD per core-hour" if device == CPU_CORE else "USD per GPU-hour"
