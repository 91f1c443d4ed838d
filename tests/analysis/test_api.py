"""The short paths that the docstring of `analysis` shows."""

from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from studies import TRUTH, isoflop_study

import analysis
from analysis import FORMS, ChainedLaw, Law, fit, intervals
from analysis.surface import Surface, Terms
from scaling.errors import UserError

FLOPS = 6e12


@pytest.fixture(scope="module")
def frame():
    """Runs with every column that some form reads."""
    made = pd.DataFrame(isoflop_study(noise=0.003))
    made["group"] = [f"model {i // 2}" for i in range(len(made))]
    made["unique_tokens"] = made["tokens"] / np.tile([1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0], 6)
    made["error"] = FORMS["error_sigmoid"](0.2, 0.55, 2.5, 2.4).error(made["loss"])
    made["learning_rate"] = 1.8 * made["params"] ** -0.7 * made["tokens"] ** 0.3
    made["batch_size"] = 0.6 * made["tokens"] ** 0.57
    return made


def quantities():
    best = TRUTH.optimum(FLOPS)
    return [
        *(analysis.optimum_params(FLOPS), analysis.optimum_tokens(FLOPS), analysis.optimum_loss(FLOPS)),
        *(analysis.tokens_per_param(FLOPS), analysis.wasted_flops(best.params / 4, best.tokens * 4)),
        analysis.wasted_usd(best.params / 4, best.tokens * 4, 1e-12),
    ]


@pytest.mark.parametrize("method", [None, "weights", "pairs", "stratified", "clustered", "delta", "profile"])
def test_every_method_gives_every_quantity_an_interval_around_the_truth(frame, method):
    table = frame if method == "clustered" else frame.drop(columns="group")
    found = intervals(fit(table), quantities(), method, level=0.999, resamples=200)
    assert [interval.quantity for interval in found] == [quantity.name for quantity in quantities()]
    for interval, quantity in zip(found, quantities(), strict=True):
        assert interval.low < interval.value < interval.high
        assert interval.low < float(quantity.of(TRUTH)) < interval.high, interval
        assert interval.to_dict()["level"] == 0.999
    with pytest.raises(FrozenInstanceError):
        found[0].low = 0.0


def test_a_table_with_groups_is_resampled_by_them_unasked(frame):
    (interval,) = intervals(fit(frame), quantities()[:1], resamples=50)
    assert "clusters" in interval.method


def test_weights_of_the_rows_are_those_of_the_fit(frame):
    table = frame.drop(columns="group").assign(weight=1.0)
    table.loc[table["flops_budget"] < 1e11, "weight"] = 1e-9
    weighted = intervals(fit(table, weights="column"), quantities()[2:3], "delta")
    assert weighted != intervals(fit(table), quantities()[2:3], "delta")


def test_what_cannot_be_had_is_one_clear_error(frame):
    bare, found = frame[["params", "tokens", "loss"]].sample(30, random_state=0), fit(frame.drop(columns="group"))
    with pytest.raises(UserError, match="name the column of clusters"):
        intervals(found, quantities(), "clustered")
    with pytest.raises(UserError, match="no such interval"):
        intervals(found, quantities(), "jackknife")
    with pytest.raises(UserError, match="level = 90"):
        intervals(found, quantities(), level=90)
    scattered = bare.assign(tokens=bare["tokens"] * np.geomspace(1, 5, 30))
    with pytest.raises(UserError, match="name the column of budgets"):
        intervals(fit(scattered), quantities(), "stratified")
    best = found.law.optimum(FLOPS)
    with pytest.raises(UserError, match="wasted FLOPs: is at its extreme.*use a bootstrap"):
        intervals(found, [analysis.wasted_flops(best.params, best.tokens)], "delta")


@pytest.mark.parametrize("name", FORMS)
def test_a_frame_becomes_a_law_of_any_form_and_json_and_back(frame, name):
    table = frame.assign(flops=6 * frame["params"] * frame["tokens"])
    found = fit(table, name)
    assert type(found.law) is FORMS[name] and np.isfinite(found.objective)
    assert Law.from_json(found.law.to_json()) == found.law


def test_a_chain_predicts_the_error_of_a_run_and_comes_back_from_json(frame):
    chain = ChainedLaw(fit(frame).law, fit(frame, "error_sigmoid").law)
    row = frame.iloc[20]
    assert chain.error(row["params"], row["tokens"]) == pytest.approx(row["error"], rel=0.02)
    assert Law.from_json(chain.to_json()) == chain


@dataclass(frozen=True)
class RootLaw(Surface):
    """A form of one's own: both exponents are one half."""

    E: Any
    A: Any
    B: Any

    form, name, source = "E + A/N^0.5 + B/D^0.5", "root", "this test"
    embedding, offset = np.eye(6)[:3], np.log([1, 1, 1, 0.5, 0.5, 1])

    def terms(self):
        return Terms(*np.log((self.E, self.A, self.B)), 0.5, 0.5, 1.0)

    @classmethod
    def from_terms(cls, terms):
        return cls(*np.exp(terms[:3]))

    @staticmethod
    def reduce(six):
        return six[..., :3]


def test_a_form_of_ones_own_is_one_small_class(monkeypatch):
    truth = RootLaw(1.2, 60.0, 250.0)
    study = isoflop_study(law=truth, noise=1e-4)
    found = fit(study, RootLaw)
    assert found.law.parameters() == pytest.approx(truth.parameters(), rel=1e-2)
    monkeypatch.setitem(FORMS, "root", RootLaw)
    assert Law.from_json(found.law.to_json()) == found.law
    law = analysis.analyse(study, form="auto", resamples=20)
    errors = {score["form"]: score["loss_error"] for score in law["forms"] if score["num_held_out"] == 1}
    assert abs(errors["root"]) < 1e-3 and abs(errors["root"]) < 0.2 * abs(errors["kaplan"])
    (interval,) = intervals(found, [analysis.optimum_params(FLOPS)], "delta")
    assert interval.low < float(truth.optimum(FLOPS).params) < interval.high


def test_the_docstring_names_only_what_there_is():
    offered = set(analysis.__all__)
    imported = {
        name.strip(" ,")
        for line in analysis.__doc__.splitlines()
        if line.strip().startswith("from analysis import")
        for name in line.split("import")[1].split(",")
    }
    assert imported and imported <= offered
    assert all(getattr(analysis, name) is not None for name in offered)
