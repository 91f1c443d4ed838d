"""What --model and --gpu refuse before anything is read."""

import pytest

from scaling.cli_cost_options import RunOptions, read_run
from scaling.errors import UserError


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"model": "", "gpu": "H100"},
            "--model '': is empty: give the name of a model, such as llama-3-70b, or a path",
        ),
        ({"model": " ", "gpu": "H100"}, "--model ' ': is empty"),
        ({"params": "7B", "gpu": "8xH100"}, "--gpu 8xH100: holds a number of GPUs: give --gpu H100 --num-gpus 8"),
        ({"params": "7B", "gpu": "64 x A100-40GB"}, "give --gpu A100-40GB --num-gpus 64"),
        ({"params": "7B", "gpu": "8xH1000"}, "gpu = 8xH1000: not in the table"),
    ],
)
def test_what_is_no_model_or_no_gpu_is_named(given, said):
    with pytest.raises(UserError) as error:
        read_run(RunOptions(**given))
    assert said in str(error.value)
