"""What every scaling law offers, and how one is written.

A law is a frozen dataclass whose fields are its parameters. A new form is one more subclass of `Law`: its equation
in unconstrained coordinates with the analytic gradient, the way to those coordinates and back, and its starting
points (a surface over N and D says only which of the general surface's exponents it ties or fixes: see
`analysis.surface`). `fit` takes the class; added to `FORMS` it is also read from JSON, tried by the backtest and
offered by the command line. Fields may also be arrays
of shape [R]: then the object is R laws at once, which is how bootstrap resamples are carried.

Coordinates are mostly logarithms, so that every vector of real numbers is a law with positive parameters, and refer
to centred inputs: about the mean of ln N the logarithm of a coefficient A' = A/N0^alpha and its exponent hardly
correlate (ln A and alpha do, at 0.999).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from scaling.errors import UserError

if TYPE_CHECKING:
    from analysis.downstream import ChainedLaw


#: A term that contributes less than this share of the prediction everywhere has been fitted away.
SMALLEST_SHARE = 1e-3


class Allocation(NamedTuple):
    """The best split of a compute budget: parameters, tokens, and the loss it reaches (nats per token)."""

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray


class Law(ABC):
    """Base of every form. Subclasses are frozen dataclasses whose fields are float64 parameters.

    form: the equation, as `law.json` has it. name: what the command line calls it. source: where it was published.
    inputs, target: columns of a table that it reads and predicts; the target is positive.
    linear: how many leading coordinates are logarithms of non-negative coefficients that the prediction is linear
    in; variable projection solves these exactly (0: none).
    coefficients_in_units: parameters whose unit, and so whose coordinate, depends on the centre of the inputs.
    """

    form: ClassVar[str]
    name: ClassVar[str]
    source: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ("params", "tokens")
    target: ClassVar[str] = "loss"
    linear: ClassVar[int] = 0
    coefficients_in_units: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    @abstractmethod
    def log_prediction(cls, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log of the predicted target, for m coordinate vectors at n points.

        theta [m, k]; x: the centred regressors, [inputs, n], or [inputs, m, 1] for one point of each vector.
        Returns the log [m, n] and its derivative by theta [m, k, n].
        """

    @classmethod
    @abstractmethod
    def from_coordinates(cls, theta: np.ndarray, centre: np.ndarray) -> Self:
        """The law at theta [..., k], fitted about `centre` [inputs]."""

    @abstractmethod
    def coordinates(self, centre: np.ndarray) -> np.ndarray:
        """The opposite of `from_coordinates`: theta [..., k]."""

    @classmethod
    @abstractmethod
    def starting_points(cls, x: np.ndarray, log_target: np.ndarray) -> np.ndarray:
        """Rough fits to begin from, as coordinates [m, k]; the estimator ranks and polishes them."""

    @staticmethod
    def regressors(inputs: np.ndarray) -> np.ndarray:
        """What the inputs [inputs, ...] become before they are centred: their logarithms."""
        return np.log(inputs)

    @staticmethod
    def centre(regressors: np.ndarray) -> np.ndarray:
        """The point [inputs] that coordinates refer to: the mean of the regressors [inputs, n]."""
        return regressors.mean(1)

    def at_bound(self, *inputs: np.ndarray) -> list[str]:
        """Names of the parameters that runs at these inputs [n] have driven to a bound: there the form degenerates."""
        return []

    def predict(self, *inputs: Any) -> np.ndarray:
        """The predicted target; inputs, in the order of `self.inputs`, and parameters broadcast."""
        values = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (*inputs, *self.parameters().values())))
        shape, flat = values[0].shape, [value.ravel() for value in values]
        many = type(self)(*flat[len(inputs) :])
        with np.errstate(all="ignore"):  # a degenerate law predicts inf or nan
            theta = many.coordinates(np.zeros(len(inputs)))
            x = type(self).regressors(np.stack(flat[: len(inputs)]))
            return np.exp(self.log_prediction(theta, x[:, :, None])[0][:, 0]).reshape(shape)[()]

    def parameters(self) -> dict[str, Any]:
        """The parameters by name."""
        return asdict(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: {"form", "parameters"}, as in `law.json`."""
        return {"form": self.form, "parameters": {name: float(value) for name, value in self.parameters().items()}}

    def to_json(self) -> str:
        """The law as JSON; `Law.from_json` reads it back to an equal object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Law | ChainedLaw":
        """The law in plain data, `law.json` included (its other keys are ignored); `form` is an equation or a name.

        Raises UserError for an unknown form or a parameter that is missing or not a number.
        """
        from analysis.downstream import ChainedLaw  # forms import this module
        from analysis.laws import find_form

        if data.get("form") == ChainedLaw.form:
            return ChainedLaw.from_dict(data)
        form = find_form(data.get("form"))
        values = data.get("parameters") or {}
        numbers = {}
        for field in fields(form):
            try:
                numbers[field.name] = float(values[field.name])
            except (KeyError, TypeError, ValueError):
                shown = values.get(field.name) if isinstance(values, dict) else values
                raise UserError(f"parameters.{field.name} = {shown!r}: must be a number; fit the law again") from None
        return form(**numbers)

    @staticmethod
    def from_json(text: str) -> "Law | ChainedLaw":
        """The law in JSON text; errors as in `from_dict`."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"law: not valid JSON at line {error.lineno}: fit the law again") from None
        if not isinstance(data, dict):
            raise UserError(f"law: must be a JSON object, not {type(data).__name__}: fit the law again")
        return Law.from_dict(data)
