"""Every form that can be fitted, by the name that the command line and `law.json` use for it."""

from typing import Any

from analysis.compute_law import ComputeLaw
from analysis.downstream import ExponentialErrorLaw, SigmoidErrorLaw
from analysis.law import Allocation, Law
from analysis.power_law import BatchSizeLaw, BatchSizeOfBothLaw, LearningRateLaw
from analysis.repeated import RepeatedDataLaw
from analysis.surface import Surface
from analysis.surfaces import ChinchillaLaw, GammaLaw, KaplanFloorLaw, KaplanLaw, TiedLaw
from scaling.errors import UserError

__all__ = ["FORMS", "Allocation", "ChinchillaLaw", "Law", "Surface", "find_form"]

#: Every form by its short name.
FORMS: dict[str, type[Law]] = {
    form.name: form
    for form in (
        *(ChinchillaLaw, GammaLaw, TiedLaw, KaplanLaw, KaplanFloorLaw, ComputeLaw, RepeatedDataLaw),
        *(ExponentialErrorLaw, SigmoidErrorLaw, LearningRateLaw, BatchSizeLaw, BatchSizeOfBothLaw),
    )
}


def find_form(form: Any) -> type[Law]:
    """The form of a short name, an equation as in `law.json`, or any class of a law. Raises UserError for any other."""
    if isinstance(form, type) and issubclass(form, Law):
        return form
    for known in FORMS.values():
        if form in (known.name, known.form):
            return known
    raise UserError(f"form = {form!r}: no such law; known are {', '.join(FORMS)}, and auto")
