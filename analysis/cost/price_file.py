"""Prices of one's own, from a file with the form of prices.yaml:

H100:
  quotes:
    - {usd: 2.10, date: 2026-10-01, provider: ours, source: contract}
"""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from analysis.cost.devices import find_device
from analysis.cost.prices import MOST_USD, Price, price_of_quotes
from scaling.errors import UserError


def price_from_file(path: Path, device_name: str) -> Price:
    """The price of a device from the user's table, whose devices may be written as people do.

    Raises UserError, with the field, its value and the remedy, for a file that cannot be read, a device that is not in
    it, and quotes without a day or with an amount that is none.
    """
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # of UTF-8 and YAML
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as prices ({reason}): give a YAML file") from None
    if not isinstance(table, Mapping):
        raise UserError(f"{path}: holds no devices: give prices as in analysis/cost/prices.yaml")
    entry = next((entry for name, entry in table.items() if _device(str(name)) == device_name), None)
    if entry is None:
        raise UserError(f"{path}: has no price of {device_name}, only of {', '.join(map(str, table))}: add it")
    quotes = entry.get("quotes") if isinstance(entry, Mapping) else None
    if not isinstance(quotes, list) or not quotes:
        raise UserError(f"{path}: {device_name}: has no quotes: give one or more, each with usd and date")
    return price_of_quotes(device_name, [_quote(path, device_name, quote) for quote in quotes])


def _device(name: str) -> str:
    known = find_device(name)
    return known.name if known else name


def _quote(path: Path, device_name: str, quote: Any) -> dict[str, Any]:
    if not isinstance(quote, Mapping):
        raise UserError(f"{path}: {device_name}: quote = {quote}: must hold usd and date")
    usd, day = quote.get("usd"), quote.get("date")
    if isinstance(usd, str):  # to YAML, 1e3 is text as well
        raise UserError(f"{path}: {device_name}: usd = {usd!r}: is text: give a plain number such as 2.10, unquoted")
    if isinstance(usd, bool) or not isinstance(usd, (int, float)) or not 0 < usd <= MOST_USD:
        raise UserError(
            f"{path}: {device_name}: usd = {usd}: must be above 0 and at most {MOST_USD:g} US dollars per device-hour"
        )
    if type(day) is not date:  # a datetime is a date too, and does not compare with one
        raise UserError(f"{path}: {device_name}: date = {day}: must be the day of the quote, such as 2026-10-01")
    origin = {name: str(quote.get(name, path)) for name in ("provider", "source")}
    return {"usd": usd, "date": day, **origin}
