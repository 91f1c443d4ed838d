import os
import re
from html.parser import HTMLParser

import pytest
import simulated_sweep

from analysis import formatting
from analysis.laws import Law
from analysis.report import write_report
from analysis.study import analyse
from scaling.errors import UserError

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page, its text, and a check that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\u00a0", " ").replace("\u202f", " ").split())

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def rows():
    return simulated_sweep.records()


@pytest.fixture(scope="module")
def law(rows):
    return simulated_sweep.law(rows)


@pytest.fixture(scope="module")
def source(rows, law, tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "report.html"
    write_report(
        path,
        records=rows,
        law=law,
        plan=simulated_sweep.plan(rows),
        curves=simulated_sweep.curves(rows),
        command="python sweeps/launch.py --grid chinchilla",
        versions={"torch": "2.13.0"},
    )
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def written(tmp_path, **arguments):
    return Page(write_report(tmp_path / "report.html", **arguments).read_text(encoding="utf-8"))


def test_the_answer_is_the_optimum_of_the_law_at_the_largest_budget(page, law):
    best = Law.from_dict(law).optimum(3e12)
    params, tokens = formatting.count(float(best.params)), formatting.count(float(best.tokens))
    loss = formatting.fixed(float(best.loss))
    assert f"With 3.0\u00d710 12 FLOPs , train {params} parameters on {tokens} tokens" in page.text
    assert f"expect {loss} nats per token" in page.text
    assert "90 % intervals:" in page.text and "tokens per parameter (" in page.text


def test_the_page_is_one_file_that_asks_for_nothing(source, page):
    addresses = [a.get("href") or a.get("src") for _, a in page.tags if "href" in a or "src" in a]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    assert "://" not in source and "@import" not in source
    assert set(re.findall(r"url\((.)", source)) <= {"#"}
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "'unsafe-inline'" not in policy.split("script-src")[1]
    assert len(source.encode()) < 1_000_000


def test_anchors_ids_and_colours_all_exist(source, page):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", source))
    assert targets <= set(ids)
    assert set(re.findall(r"var\(--([\w-]+)\)", source)) <= set(re.findall(r"--([\w-]+):", source))


def test_every_figure_says_what_to_see(page):
    figures, images = page.named("figure"), [a for _, a in page.tags if a.get("role") == "img"]
    assert len(figures) == len(images) == len(page.named("svg")) == 8
    assert all(len(image["aria-label"]) > 40 for image in images)


def test_plan_and_bill_are_held_against_what_was_measured(page, rows):
    planned = sum(row["predicted_seconds"] for row in rows) / 3600
    spent = sum(row["device_hours"] for row in rows)
    low, high = (f"{formatting.significant(hours)} h" for hours in (planned / 1.2, planned * 1.2))
    planned_text = f"{formatting.significant(planned)} h ({low} to {high})"
    assert f"CPU core-hours {planned_text} {formatting.significant(spent)} h" in page.text
    assert f"Cost, US dollars {formatting.dollars(0.04 * planned)} (" in page.text
    assert f"{formatting.dollars(0.04 * spent)} (" in page.text
    assert "prices of 2026-02-14, a price list" in page.text
    assert "Wall time" in page.text and "9.00 min" in page.text
    assert "The plan warned: 2 of 42 cells see the text more than once." in page.text


def test_predictions_are_held_against_measurements_and_those_that_missed_are_named(page, rows):
    finished = [row for row in rows if row["status"] == "finished"]
    missed = [row for row in finished if not 1 / 1.2 <= row["seconds"] / row["predicted_seconds"] <= 1.2]
    assert 0 < len(missed) < len(finished)
    assert f"Time in the training loop {len(finished)}" in page.text
    assert f"{len(finished) - len(missed)} of {len(finished)}" in page.text
    said = page.text.split("Outside of the interval of time")[1].split(".IsoFLOP")[0]
    assert all(row["cell"] in said for row in missed)
    assert "Peak memory of a process" in page.text and "Outside of the interval of memory" not in page.text
    assert "Energy, by the GPUs' counters" not in page.text, "not measured, so not compared"


def test_every_run_is_in_the_table_and_the_diverged_one_is_explained(page, rows):
    for row in rows:
        assert row["cell"] in page.text and row["run_id"] in page.text
    assert "diverged: loss not finite at step 212" in page.text
    off = [a for a in page.named("tr") if a.get("class") == "off"]
    assert len(off) == 1
    assert "DIVERGED_RUNS_EXCLUDED" in page.text


def test_conventions_and_the_way_to_reproduce_are_spelled_out(page):
    for words in (
        "6 x params x tokens",
        "all parameters, embeddings included",
        "validation, nats per token",
        "1.07 times 6ND",
        "c0ffee" * 10,
        "CPU Example 3000",
        "torch 2.13.0",
        "python sweeps/launch.py --grid chinchilla",
        "Compare their slopes with ours, not their heights",
    ):
        assert words in page.text


def test_a_minimum_at_the_edge_is_shown_with_its_warning(rows, law, tmp_path):
    budgets = [{**fit, "interior": fit["flops"] < 3e12} for fit in law["isoflop"]["budgets"]]
    warning = {
        "code": "AT_EDGE",
        "message": "the minimum at 3e12 FLOPs lies at the edge",
        "remedy": "add larger models",
    }
    law = {**law, "isoflop": {**law["isoflop"], "budgets": budgets}, "warnings": [warning]}
    page = written(tmp_path, records=rows, law=law)
    assert "AT_EDGE the minimum at 3e12 FLOPs lies at the edge: add larger models" in page.text
    assert "not inside the grid" in page.text and "Only 5 of 6 minima lie inside" in page.text
    assert "The fit raised no warning" not in page.text


def test_text_from_data_stays_text(rows, law, tmp_path):
    evil = "</script><evil a='1'>\"&"
    plan = simulated_sweep.plan(rows)
    plan |= {"grid": evil, "description": evil, "machine": evil, "warnings": [evil]}
    plan["price"] |= {"device": evil, "date": evil, "source": evil}
    law = {
        **law,
        "conventions": {"params": evil, "flops": evil, "loss": evil},
        "warnings": [{"code": evil, "message": evil, "remedy": evil}],
        "excluded": [{"run_id": evil, "reason": evil}],
        "settings": {evil: evil},
    }
    keys = ("cell", "run_id", "reason", "device", "dtype", "corpus", "corpus_fingerprint", "finished_at")
    rows = [{**row, **dict.fromkeys(keys, evil)} for row in rows]
    page = written(tmp_path, records=rows, law=law, plan=plan, command=evil, versions={evil: evil}, title=evil)
    assert "evil" not in {tag for tag, _ in page.tags}
    assert len(page.named("script")) == 1
    assert page.text.count("<evil a='1'>") > 100


def pending(rows):
    return [{**row, "status": "pending", "loss": None, "seconds": None, "finished_at": None} for row in rows]


def test_a_sweep_without_runs_says_so(tmp_path):
    page = written(tmp_path, records=[], law=None)
    assert "There are no runs yet, so there is no law." in page.text
    assert not page.named("figure")


def test_a_sweep_in_which_nothing_finished_shows_its_plan(rows, tmp_path):
    page = written(tmp_path, records=pending(rows), law=None, plan=simulated_sweep.plan(rows), curves={})
    assert "None of the 42 runs has finished, so there is no law yet." in page.text
    assert "42 pending" in page.text and rows[0]["cell"] in page.text


def test_finished_runs_without_a_law_are_shown(rows, tmp_path):
    page = written(tmp_path, records=rows, law=None)
    assert "diverged: loss not finite at step 212" in page.text
    assert "41 of 42 runs have finished, and no law was fitted to them." in page.text
    assert {a["id"] for a in page.named("figure")} >= {"figure-isoflop", "figure-compute"}


def test_a_law_without_isoflop_minima_is_shown(rows, law, tmp_path):
    page = written(tmp_path, records=rows, law={**law, "isoflop": None})
    assert "No parabola was fitted" in page.text
    assert "figure-optimal-params" in {a["id"] for a in page.named("figure")}


def test_one_budget_and_runs_that_all_diverged_make_a_report(tmp_path):
    rows = simulated_sweep.records(budgets=(3e11,), sizes_per_budget=9, diverged=0)
    page = written(tmp_path, records=rows, law=None, curves=simulated_sweep.curves(rows))
    assert "one compute budget of 3.0\u00d710\u00b9\u00b9 FLOPs" in page.text
    rows = simulated_sweep.records(diverged=42)
    page = written(tmp_path, records=rows, law=None, curves=simulated_sweep.curves(rows, lines=20))
    assert "42 diverged" in page.text and "None of the 42 runs has finished" in page.text


def test_a_law_with_undefined_numbers_is_shown_with_dashes(rows, law, tmp_path):
    first, *rest = law["isoflop"]["budgets"]
    undefined = {"params_opt": None, "tokens_opt": None, "loss_opt": None, "params_interval": None, "interior": False}
    law = {
        **law,
        "r_squared_log_loss": None,
        "exponents": {"a": None, "b": None},
        "intervals": {"level": 0.9, "method": "none", "a": None},
        "isoflop": {"budgets": [{**first, **undefined}, *rest], "exponents": {"a": None, "b": None}, "intervals": {}},
        "optimum": [{**point, "loss": {"value": point["loss"]["value"]}} for point in law["optimum"]],
    }
    assert "R\u00b2 of the surface \u2013" in written(tmp_path, records=rows, law=law).text


def test_a_report_that_cannot_be_written_leaves_the_old_one(rows, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("the old report")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"report\.html: cannot be written \(No space left on device\)"):
        write_report(path, records=[], law=None)
    assert path.read_text() == "the old report" and os.listdir(tmp_path) == ["report.html"]


def test_a_path_under_a_file_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", records=[], law=None)


def test_forms_are_compared_and_the_average_is_the_answer(rows, law, tmp_path):
    page = written(tmp_path, records=rows, law=law)
    assert "Which form predicts best" in page.text and "approach2_recent" in page.text
    assert "The form chinchilla was asked for" in page.text and "average over forms" not in page.text
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    chosen = analyse(columns, form="auto", resamples=20, at_flops=[1e13])
    page = written(tmp_path, records=rows, law=chosen)
    assert "Chosen surface: " in page.text and "are the average over forms" in page.text
    assert "as its backtest shows it" in page.text and "the average over forms, with model-form error" in page.text
