from datetime import date
from pathlib import Path

import pytest
import yaml

import analysis.cost.prices
from analysis.cost.devices import CPU_CORE, find_device
from analysis.cost.prices import own_price, price_for
from scaling.errors import UserError

TABLE = yaml.safe_load(Path(analysis.cost.prices.__file__).with_name("prices.yaml").read_text())


def test_a_gpu_by_its_driver_name():
    price = price_for("NVIDIA H100 80GB HBM3")
    assert (price.low, price.mid, price.high) == (2.95, 3.90, 5.95)
    assert price.unit == "USD per GPU-hour"
    assert price.date == date(2026, 8, 1)
    assert "Nebius" in price.provider and "DigitalOcean" in price.provider
    assert "gpuhunt" in price.source and "skypilot" in price.source


def test_a_cpu_core():
    price = price_for(CPU_CORE)
    assert (price.low, price.mid, price.high) == (0.0248, 0.04, 0.05)
    assert price.unit == "USD per core-hour"


def test_no_quote_is_no_price():
    assert price_for("NVIDIA GB200") is None
    assert price_for("Some Unknown GPU") is None


@pytest.mark.parametrize("device", TABLE)
def test_every_price_is_ordered_dated_and_sourced(device):
    assert device == CPU_CORE or find_device(device).name == device
    price = price_for(device)
    assert 0 < price.low <= price.mid <= price.high
    assert isinstance(price.date, date)
    assert price.provider and price.source


def test_prices_read_after_the_spring_of_2026_are_fresh():
    for device in ("A100", "H100", "H200", "B200", "L4", "L40S", "A10", "A40", "MI300X"):
        assert price_for(device).warning(today=date(2026, 11, 22)) is None, device
    assert "20 months ago" in price_for("H800").warning(today=date(2026, 11, 22))


def test_a_price_older_than_six_months_warns():
    price = price_for(CPU_CORE)
    assert price.warning(today=date(2026, 12, 1)) is None
    assert price.warning(today=date(2027, 3, 1)) == (
        "the price of CPU core is from 2026-08-01, 7 months ago: give your own in USD per core-hour"
    )


def test_the_oldest_quote_dates_the_price():
    quotes = TABLE["H100 SXM 80GB"]["quotes"]
    assert len({quote["date"] for quote in quotes}) > 1
    assert price_for("H100").date == min(quote["date"] for quote in quotes)


def test_ones_own_price():
    price = own_price(1.5, "H100 SXM 80GB", today=date(2026, 11, 21))
    assert (price.low, price.mid, price.high) == (1.5, 1.5, 1.5)
    assert price.unit == "USD per GPU-hour"
    assert price.warning(today=date(2026, 11, 21)) is None
    assert own_price(0, CPU_CORE).unit == "USD per core-hour"


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_an_impossible_price_is_refused(amount):
    with pytest.raises(UserError, match=f"price = {amount}: must be from 0 to"):
        own_price(amount, CPU_CORE)
