import torch

from parallel import matmul


def test_backends_that_pass_are_float32_accurate_and_leave_torch_selected():
    passed = matmul.accurate_matmul_backends()
    assert "torch" in passed
    assert all(error <= matmul.FLOAT32_TOLERANCE for error in passed.values())
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


def test_a_backend_that_rounds_to_bfloat16_is_refused(monkeypatch):
    exact = torch.Tensor.__matmul__

    def rounding(self, other):
        if self.dtype == torch.float32 and torch.backends.mkldnn.matmul.fp32_precision == "bf16":
            return exact(self.bfloat16(), other.bfloat16()).float()
        return exact(self, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
    assert list(matmul.accurate_matmul_backends()) == ["torch"]


def test_rates_cover_what_passed_and_leave_torch_selected():
    rates = matmul.matmul_rates(torch.device("cpu"))
    assert set(rates) == {*matmul.accurate_matmul_backends(), "bfloat16"}
    assert all(1e6 < rate < 1e14 for rate in rates.values())
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
