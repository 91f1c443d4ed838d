"""The user's own prices: read, dated, and refused with one line when something is wrong in them."""

from datetime import date

import pytest

from analysis.cost.price_file import price_from_file
from scaling.errors import UserError


def written(tmp_path, text):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    return path


def test_quotes_of_a_device_written_as_people_do(tmp_path):
    table = "H100:\n  quotes:\n    - {usd: 2.0, date: 2026-01-05, provider: ours}\n    - {usd: 3, date: 2026-10-01}\n"
    price = price_from_file(written(tmp_path, table), "H100 SXM 80GB")
    assert (price.low, price.mid, price.high, price.unit) == (2.0, 2.5, 3.0, "USD per GPU-hour")
    assert price.date == date(2026, 1, 5) and "ours" in price.provider
    assert price.warning(today=date(2026, 11, 22)) is not None


def test_a_quote_of_a_day_to_come_warns(tmp_path):
    table = "H100:\n  quotes:\n    - {usd: 2, date: 2026-10-01}\n    - {usd: 3, date: 2062-10-01}\n"
    price = price_from_file(written(tmp_path, table), "H100 SXM 80GB")
    assert price.warning(today=date(2026, 11, 22)) == (
        "the price of H100 SXM 80GB is from 2062-10-01, a day to come: correct the date of its quote"
    )


@pytest.mark.parametrize(
    "text, said",
    [
        ("- 1\n", "holds no devices"),
        ("{", "cannot be read as prices"),
        ("A100:\n  quotes: [{usd: 1, date: 2026-01-01}]\n", "has no price of H100 SXM 80GB, only of A100"),
        ("H100: 3\n", "has no quotes"),
        ("H100:\n  quotes: [3]\n", "quote = 3: must hold usd and date"),
        ("H100:\n  quotes: [{usd: -1, date: 2026-01-01}]\n", "usd = -1: must be above 0"),
        (
            "H100:\n  quotes: [{usd: 1.0e+300, date: 2026-01-01}]\n",
            r"usd = 1e\+300: must be above 0 and at most 1e\+06",
        ),
        ("H100:\n  quotes: [{usd: 1e300, date: 2026-01-01}]\n", "usd = '1e300': is text: give a plain number"),
        ("H100:\n  quotes: [{usd: '2.10', date: 2026-01-01}]\n", "usd = '2.10': is text: give a plain number"),
        ("H100:\n  quotes: [{usd: .inf, date: 2026-01-01}]\n", "usd = inf: must be"),
        ("H100:\n  quotes: [{usd: 1}]\n", "date = None: must be the day"),
    ],
)
def test_mistakes_in_the_file(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as error:
        price_from_file(written(tmp_path, text), "H100 SXM 80GB")
    assert len(str(error.value).splitlines()) == 1


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read as prices"):
        price_from_file(tmp_path / "none.yaml", "H100 SXM 80GB")
