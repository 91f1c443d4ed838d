"""Numbers as people read them, for the report and its plots. Every function takes None and gives a dash."""

import math
from datetime import datetime

DASH = "\N{EN DASH}"
#: A raised minus and the raised digits 0 to 9.
SUPERSCRIPTS = "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
_PREFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def is_number(value: object) -> bool:
    """Whether `value` is a finite real number (a bool is not)."""
    try:
        return not isinstance(value, (bool, str, bytes)) and math.isfinite(value)
    except TypeError:
        return False


def significant(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits: 0.00123, 2.24, 57 100; powers of ten from a million up and below 1e-4."""
    if not is_number(value):
        return DASH
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return ("-" if value < 0 else "") + power(abs(value), digits)
    rounded = float(f"{value:.{digits - 1}e}")  # first, because 999.7 has the digits of 1000
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{rounded:,.{decimals}f}"
    return text.replace(",", "\N{NARROW NO-BREAK SPACE}")


def whole(value: float | None) -> str:
    """An integer in full, digits in groups of three: 12 800."""
    return f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if is_number(value) else DASH


def count(value: float | None, digits: int = 3) -> str:
    """A count of parameters or tokens: 812, 33.1k, 4.02M, 1.4T."""
    if not is_number(value):
        return DASH
    for size, prefix in _PREFIXES:
        if abs(float(f"{value:.{digits - 1}e}")) >= size:
            return significant(value / size, digits) + prefix
    return significant(value, digits)


def power(value: float | None, digits: int = 2) -> str:
    """Scientific notation with a raised exponent, for FLOPs: 4.0x10^11, and 10^12 for a bare power."""
    if not is_number(value) or value <= 0:
        return DASH
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    ten = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", SUPERSCRIPTS))
    return ten if float(mantissa) == 1 else f"{mantissa}\N{MULTIPLICATION SIGN}{ten}"


def fixed(value: float | None, decimals: int = 3) -> str:
    """A loss or an exponent, with a fixed number of decimals."""
    return f"{value:.{decimals}f}" if is_number(value) else DASH


def percent(value: float | None) -> str:
    """A share as a percentage with two significant digits; 0.0123 gives 1.2 %."""
    return f"{significant(100 * value, 2)}\N{NO-BREAK SPACE}%" if is_number(value) else DASH


def duration(seconds: float | None) -> str:
    """A time in the largest unit that keeps it above one: 42 s, 3.2 min, 1.4 h."""
    if not is_number(seconds):
        return DASH
    for size, unit in ((86400 * 3, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{significant(seconds / (86400 if unit == 'd' else size), 3)}\N{NO-BREAK SPACE}{unit}"
    return f"{significant(seconds, 2)}\N{NO-BREAK SPACE}s"


def timestamp(text: str | None) -> str:
    """An ISO 8601 time to the minute: 2026-03-01 10:12 UTC; what is no such time is returned as it is."""
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return text or DASH
    return time.strftime("%Y-%m-%d %H:%M ") + (time.tzname() or "")


def dollars(value: float | None) -> str:
    """US dollars: whole above 100, with cents above 1, two significant digits below."""
    if not is_number(value):
        return DASH
    if 0 < abs(value) < 0.995:  # above, it rounds to $1.00
        return f"${significant(value, 2)}"
    return f"${value:,.{0 if abs(value) >= 100 else 2}f}"


def interval(bounds: object, show) -> str:
    """`low to high`, each written by `show`; a dash when there are no two finite bounds."""
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2 or not all(map(is_number, bounds)):
        return DASH
    return f"{show(bounds[0])} to {show(bounds[1])}"
