"""The list of layouts to try: different sizes first, then micro-batches; its regret on published searches."""

import csv
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.cost.architecture import Architecture
from analysis.cost.devices import find_device
from analysis.cost.layout_shortlist import short_list
from analysis.cost.measured import PUBLISHED, describe, measurements, read_rows
from analysis.cost.setup import Setup
from analysis.cost.stacks import constants_of
from analysis.cost.step import step_time

#: What was measured while the training of BLOOM-176B was prepared, 384 A100s, seconds of the second step
#: (bigscience-workshop/bigscience@053adafe, train/tr11-176B-ml/chronicles-prequel.md); a search: one model on one day.
BLOOM = Path(__file__).with_name("bloom_layouts.csv")
#: "A100s PCI-Express/NUMA was improved today ... do not compare today's numbers to yesterday's" (ibid.).
REPAIRED = "2022-02-25"
SETUP = Setup(
    Architecture("dense", 32, 4096, 32, 8, 128, 14336, 128256),
    find_device("H100"),
    num_gpus=64,
    seq_length=4096,
    global_batch_size=512,
)


def laid_out(tensor, pipeline, micro_batch):
    sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    return replace(SETUP, micro_batch_size=micro_batch, **sizes)


def vtrain():
    """Search -> [(setup, measured seconds)] of the four multi-node searches of vTrain (Bang et al. 2024)."""
    found = defaultdict(list)
    for row in read_rows(PUBLISHED):
        if row["group"] == "vtrain_multi_a100":
            found[row["model"]].append((describe(row).setup, measurements(row).step_seconds))
    return found


def bloom(repaired):
    """The same of BLOOM, per sequence since batches differ, on the days before or after the machine's repair."""
    same = {"model": "BLOOM", "vocab": "250880", "seq_len": "2048", "gpu": "A100 SXM 80GB", "n_gpus": "384"}
    same |= {"zero_or_fsdp": "zero1", "recompute": "full", "precision": "bf16", "framework": "Megatron-DeepSpeed"}
    found = defaultdict(list)
    with open(BLOOM, encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (row["date"] >= REPAIRED) == repaired:
                setup = describe(same | row).setup
                search = f"{row['date']} {row['layers']} x {row['hidden']}, {row['heads']} heads"
                found[search].append((setup, float(row["step_time_s"]) / setup.global_batch_size))
    return found


def regrets(runs, count=5):
    """How much slower the first of the list, and the best of it, are than the fastest measured: percent."""
    predicted = [(setup, step_time(setup).total / setup.tokens_per_step) for setup, _ in runs]
    listed = short_list(predicted, count, constants_of(runs[0][0].stack).within)
    assert len(listed) == min(count, len(runs)) == len(set(listed))
    fastest = min(seconds for _, seconds in runs)
    over = [100 * (runs[place][1] / fastest - 1) for place in listed]
    return over[0], min(over)


def test_the_best_of_five_is_the_best_of_every_published_search():
    searches = {**vtrain(), **bloom(repaired=True)}
    assert {name: len(searches[name]) for name in ("GPT-3.6B", "GPT-18.4B", "GPT-39.1B", "GPT-175.0B")} == {
        "GPT-3.6B": 26,
        "GPT-18.4B": 15,
        "GPT-39.1B": 47,
        "GPT-175.0B": 21,
    }
    assert len(searches) == 13
    for name, runs in searches.items():
        first, best = regrets(runs)
        assert first <= 5 and best <= 1, f"{name}: first {first:.1f} %, best of five {best:.1f} %"


def test_on_a_faulty_machine_the_list_holds_the_best_too():
    for name, runs in bloom(repaired=False).items():
        assert regrets(runs)[1] <= 1, name


def test_different_sizes_come_before_further_micro_batches():
    predicted = [(laid_out(4, 2, size), 1.00 + size / 1000) for size in (1, 2, 4, 8, 16)]
    predicted += [(laid_out(8, 1, size), 1.05 + size / 1000) for size in (1, 2, 4)]
    predicted += [(laid_out(2, 4, 1), 1.06), (laid_out(1, 8, 1), 1.07)]
    chosen = [predicted[place][0] for place in short_list(predicted, 5, 0.06)]
    assert chosen == [laid_out(4, 2, 1), laid_out(4, 2, 2), laid_out(8, 1, 1), laid_out(8, 1, 2), laid_out(2, 4, 1)]
    assert [predicted[place][0] for place in short_list(predicted, 1, 0.06)] == [laid_out(4, 2, 1)]


def test_sizes_that_cannot_be_the_fastest_make_room():
    likely = math.exp(1.645 * math.sqrt(2) * 0.06)
    slow = [(laid_out(8, 1, size), 1.01 * likely + size / 1000) for size in (1, 2)]
    near = [(laid_out(4, 2, size), 1.0 + size / 1000) for size in (1, 2, 4, 8, 16)]
    assert {place for place in short_list(near + slow, 5, 0.06)} == {0, 1, 2, 3, 4}
    # where the fast sizes have too few micro-batches, the list is filled with what is left
    assert short_list(near[:2] + slow, 5, 0.06) == [0, 1, 2, 3]


def test_one_micro_batch_of_the_same_sizes_is_listed_once():
    found = laid_out(4, 2, 1)
    assert short_list([(found, 1.0), (replace(found, recompute_granularity="full"), 1.1)], 5, 0.06) == [0]
    assert short_list([], 5, 0.06) == []


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_a_list_is_as_long_as_asked_and_sorted(count):
    predicted = [
        (laid_out(tensor, 1, size), 1 + size / 10 + tensor / 100) for tensor in (1, 2, 4) for size in (1, 2, 4)
    ]
    places = short_list(predicted, count, 0.06)
    assert len(places) == count and places == sorted(places, key=lambda place: predicted[place][1])
