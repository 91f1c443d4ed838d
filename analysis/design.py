"""Which runs to train next: those that tell most about a target for their cost.

What is known is a Gaussian: the surface's coordinates have a normal prior, losses have noise, and the surface's form is
wrong by a smooth Gaussian process of a given size over ln N and ln D. Without the last, the optimal design is many
copies of the cheapest runs, blind to where the form fails; with it, a run tells about its surroundings and no more, so
that some lie close to the target. A run shrinks the variance of the targets by an amount that does not depend on the
loss it will have; the next run is the one that shrinks them most for its cost (V-optimality, greedily; sequential
designs for scaling laws: ScaleBench, arXiv 2604.22753). Gradients are the form's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from analysis.surface import Surface, general_surface

#: Where nothing is known: each term is a third of the loss, with usual exponents.
_TYPICAL = np.log([1 / 3, 1 / 3, 1 / 3, 0.35, 0.35, 0.8])
#: Standard deviations of the logs of E, A', B', alpha, beta and gamma around it.
_WIDTHS = np.array([1.0, 1.5, 1.5, 0.5, 0.5, 0.5])
#: Gain is divided by the cost to this power. 1, best where the model of the surface is right, buys many cheap runs far
#: from the target, and 0 a few that the budget just pays; on public tables 1/2 and 3/4 predict better than both.
COST_EXPONENT = 0.75
_MAX_STEPS = 200


@dataclass(frozen=True)
class Belief:
    """What is known of a surface.

    noise: standard deviation of log loss between runs of one cell. form_error: that of the form, in log loss;
    correlation_length: e-folds of N or D over which it persists. centre [2]: mean ln N and ln D that coordinates refer
    to. prior, widths, mean [k]: coordinates before and after the runs. x [2, n], log_loss [n]: the runs.
    """

    form: type[Surface]
    centre: np.ndarray
    prior: np.ndarray
    widths: np.ndarray
    mean: np.ndarray
    x: np.ndarray
    log_loss: np.ndarray
    noise: float = 3e-3
    form_error: float = 1e-2
    correlation_length: float = float(np.log(10.0))

    @property
    def law(self) -> Surface:
        """The surface at the mean."""
        return self.form.from_coordinates(self.mean, self.centre)

    def place(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Centred regressors [2, m] of cells."""
        return np.log(np.stack([params, tokens]).astype(np.float64)) - self.centre[:, None]

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Derivative of the law's log loss by its coordinates, [k, m]."""
        return self.form.log_prediction(self.mean[None], x)[1][0]

    def form_covariance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Covariance [m, n] of the form's error between places [2, m] and [2, n]."""
        squared = ((first[:, :, None] - second[:, None, :]) ** 2).sum(0)
        return self.form_error**2 * np.exp(-squared / (2 * self.correlation_length**2))

    def predict(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Expected loss: the law, corrected for what the runs nearby show of the form's error."""
        x = self.place(params, tokens)
        log_loss = self.form.log_prediction(self.mean[None], x)[0][0]
        if len(self.log_loss):
            residual = self.log_loss - self.form.log_prediction(self.mean[None], self.x)[0][0]
            log_loss = log_loss + self.form_covariance(x, self.x) @ np.linalg.solve(self._scatter(), residual)
        return np.exp(log_loss)

    def learn(self, params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> "Belief":
        """The belief after all runs [n] (not those it had): the most probable coordinates, by Levenberg-Marquardt."""
        x, log_loss = self.place(params, tokens), np.log(loss)
        # The prior speaks of shares of the loss, so it moves with the level of the runs.
        prior = self.prior + self.form.reduce(np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])) * log_loss.mean()
        seen = replace(self, x=x, log_loss=log_loss)
        weight, precision = np.linalg.inv(seen._scatter()), np.diag(self.widths**-2.0)

        def misfit(theta: np.ndarray) -> float:
            residual = self.form.log_prediction(theta[None], x)[0][0] - log_loss
            return float(residual @ weight @ residual + (theta - prior) @ precision @ (theta - prior))

        theta, damping = prior.copy(), 1e-3
        best = misfit(theta)
        for _ in range(_MAX_STEPS):
            value, jacobian = (part[0] for part in self.form.log_prediction(theta[None], x))
            slope = jacobian @ weight @ (value - log_loss) + precision @ (theta - prior)
            curvature = jacobian @ weight @ jacobian.T + precision
            step = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), slope)
            tried = misfit(theta - step)
            if tried < best:
                theta, damping, finished = theta - step, damping / 5, best - tried < 1e-10 * best
                best = tried
            else:
                damping, finished = damping * 5, damping > 1e8
            if finished:
                break
        return replace(seen, mean=theta)

    def _scatter(self) -> np.ndarray:
        """Covariance [n, n] of the runs' log losses around the law."""
        return self.form_covariance(self.x, self.x) + self.noise**2 * np.eye(self.x.shape[1])


def ignorance(form: type[Surface], params: np.ndarray, tokens: np.ndarray, **settings: float) -> Belief:
    """The belief before any run, for cells around these [n]; settings: noise, form_error, correlation_length."""
    centre = np.log(np.stack([params, tokens]).astype(np.float64)).mean(1)
    typical, widths = form.reduce(_TYPICAL), np.abs(form.reduce(_WIDTHS))
    return Belief(form, centre, typical, widths, typical, np.empty((2, 0)), np.empty(0), **settings)


class Targets(NamedTuple):
    """Quantities to be known, t of them.

    gradient [k, t]: by the law's coordinates. places [2, t] and slopes [t]: what the form's error d does to them: d at
    the place where the slope is 0, as to a log loss; else the slope times the derivative of d along the IsoFLOP.
    """

    gradient: np.ndarray
    places: np.ndarray
    slopes: np.ndarray


def optimum_targets(belief: Belief, flops: float) -> Targets:
    """ln N* and ln L* at `flops` = 6ND.

    With x + y = s at the optimum of A'e^(-alpha x) + B'e^(-beta y), x* = (ln(alpha A') - ln(beta B') + beta s) /
    (alpha + beta); that of ln L* needs no derivative of x*, as the loss is least there. An error d of the form moves x*
    by -d' / (ln L)'', both along the IsoFLOP.
    """
    best = belief.law.optimum(flops)
    place = belief.place(np.atleast_1d(best.params), np.atleast_1d(best.tokens))
    six = belief.mean @ belief.form.embedding + belief.form.offset
    alpha, beta = np.exp(six[3:5])
    x, y = place[:, 0]
    by_six = np.array([0.0, 1.0, -1.0, 1.0 - alpha * x, beta * y - 1.0, 0.0]) / (alpha + beta)
    by_theta = belief.gradient(place)[:, 0]
    by_terms = general_surface(six[None], place)[1][0, 1:3, 0]  # by ln A' and ln B': the curvature is made of these
    curvature = float(alpha**2 * by_terms[0] + beta**2 * by_terms[1])
    gradient = np.stack([belief.form.embedding @ by_six, by_theta], 1)
    return Targets(gradient, np.repeat(place, 2, 1), np.array([-1.0 / curvature, 0.0]))


def loss_targets(belief: Belief, params: np.ndarray, tokens: np.ndarray) -> Targets:
    """ln L at given cells [t]."""
    places = belief.place(params, tokens)
    return Targets(belief.gradient(places), places, np.zeros(places.shape[1]))


def joint_covariance(belief: Belief, params: np.ndarray, tokens: np.ndarray, targets: Targets) -> np.ndarray:
    """Covariance [n + t, n + t] of the log losses of cells [n] and of the targets, given the runs of the belief."""
    x = belief.place(params, tokens)
    seen = belief.x.shape[1]
    gradient = np.concatenate([belief.gradient(belief.x), belief.gradient(x), targets.gradient], 1)
    places = np.concatenate([belief.x, x, targets.places], 1)
    slopes = np.concatenate([np.zeros(seen + len(params)), targets.slopes])
    covariance = gradient.T @ (belief.widths[:, None] ** 2 * gradient) + _form_effects(belief, places, slopes)
    if not seen:
        return covariance
    known = covariance[:seen, :seen] + belief.noise**2 * np.eye(seen)
    return covariance[seen:, seen:] - covariance[seen:, :seen] @ np.linalg.solve(known, covariance[:seen, seen:])


def _form_effects(belief: Belief, places: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Covariance [m, m] of what the form's error does to quantities, as `Targets` describes them."""
    squared = belief.correlation_length**2
    along = places[0] - places[1]  # the IsoFLOP runs in the direction (1, -1)
    apart = (along[None, :] - along[:, None]) / squared
    is_slope = slopes != 0
    row, column = is_slope[:, None], is_slope[None, :]
    factor = np.where(row & column, 2.0 / squared - apart**2, np.where(row, apart, np.where(column, -apart, 1.0)))
    scale = np.where(is_slope, slopes, 1.0)
    return belief.form_covariance(places, places) * factor * scale[:, None] * scale[None, :]


Gain = Callable[[np.ndarray, int, float], np.ndarray]


def variance_gain(covariance: np.ndarray, cells: int, noise: float) -> np.ndarray:
    """By how much a run of each cell [n] lowers the summed variance of the targets: V-optimality."""
    return (covariance[:cells, cells:] ** 2).sum(1) / (np.diag(covariance)[:cells] + noise**2)


def relative_gain(covariance: np.ndarray, cells: int, noise: float) -> np.ndarray:
    """The same for targets of different units: by which share of itself each variance falls, summed."""
    shared = covariance[:cells, cells:] ** 2 / np.diag(covariance)[cells:]
    return shared.sum(1) / (np.diag(covariance)[:cells] + noise**2)


def information_gain(covariance: np.ndarray, cells: int, noise: float) -> np.ndarray:
    """How much a run of each cell [n] tells about everything: D-optimality."""
    return np.log1p(np.diag(covariance)[:cells] / noise**2)


def choose(
    covariance: np.ndarray,
    cost: np.ndarray,
    budget: float,
    noise: float,
    repeat: bool = True,
    gain: Gain = variance_gain,
    without: np.ndarray | None = None,
    pause: float = np.inf,
    cost_exponent: float = COST_EXPONENT,
    least: float = 0.0,
) -> list[int]:
    """Indices of cells [n] in the order to run them, while the budget pays: each has the most gain / cost^exponent.

    covariance: of `joint_covariance`, [n + t, n + t]. repeat: whether a cell may run again, with a new seed.
    without: mask [n] of cells that may not run. pause: stop once so much is spent, to learn from the runs before more.
    least: stop when no run gains more than this.
    """
    cells = len(cost)
    allowed = np.ones(cells, bool) if without is None else ~without
    chosen, spent = [], 0.0
    while spent < pause:
        gained = gain(covariance, cells, noise)
        able = allowed & (cost <= budget - spent) & (gained > least)
        worth = np.where(able, gained / cost**cost_exponent, 0.0)
        best = int(np.argmax(worth))
        if not worth[best] > 0:
            break
        chosen.append(best)
        spent += cost[best]
        covariance = after_run(covariance, best, noise)
        allowed[best] = repeat
    return chosen


def after_run(covariance: np.ndarray, index: int, noise: float) -> np.ndarray:
    """The covariance once a run of this cell is known: the loss itself does not matter."""
    column = covariance[:, index]
    return covariance - np.outer(column, column) / (column[index] + noise**2)
