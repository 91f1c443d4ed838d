import pytest
import torch

from parallel import matmul
from scaling import precision
from scaling.config import ExecutionConfig
from scaling.errors import UserError

CPU = torch.device("cpu")
AMD = {"torch": 95e9, "onednn": 210e9, "bfloat16": 430e9}
INTEL_AMX = {"torch": 150e9, "onednn": 155e9, "bfloat16": 1500e9}


@pytest.mark.parametrize(
    ("rates", "dtype", "hidden_size", "fused", "chosen"),
    [
        (AMD, "auto", 64, True, ("float32", "onednn")),
        (AMD, "auto", 16, True, ("float32", "torch")),
        (AMD, "auto", 64, False, ("float32", "torch")),
        (AMD, "bfloat16", 64, True, ("bfloat16", "torch")),
        (INTEL_AMX, "auto", 64, True, ("bfloat16", "torch")),
        (INTEL_AMX, "float32", 64, True, ("float32", "torch")),
        ({"torch": 50e9, "bfloat16": 5e9}, "auto", 64, True, ("float32", "torch")),
    ],
)
def test_the_choice_follows_the_measured_rates(monkeypatch, rates, dtype, hidden_size, fused, chosen):
    monkeypatch.setattr(matmul, "matmul_rates", lambda device: rates)
    choice = precision.choose(ExecutionConfig(dtype=dtype), CPU, hidden_size, fused)
    assert (choice.dtype, choice.matmul) == chosen
    assert f"torch {rates['torch'] / 1e9:.0f}" in choice.reason


def test_cuda_demanded_and_absent_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="execution.device = cuda.*use cpu or auto"):
        precision.pick_device(ExecutionConfig(device="cuda"))
    assert precision.pick_device(ExecutionConfig()).type == "cpu"


def test_an_earlier_choice_must_fit_the_settings_of_now():
    choice = precision.Choice(device="cpu", dtype="bfloat16", matmul="torch", reason="")
    assert precision.still_possible(choice, ExecutionConfig(), CPU)
    assert not precision.still_possible(choice, ExecutionConfig(dtype="float32"), CPU)
    assert not precision.still_possible(choice.model_copy(update={"device": "cuda"}), ExecutionConfig(), CPU)
    assert not precision.still_possible(choice.model_copy(update={"matmul": "magic"}), ExecutionConfig(), CPU)
