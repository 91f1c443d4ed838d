"""Loss over the fixed held-out set."""

import math

import numpy as np

from scaling.engine import Engine
from scaling.record import Evaluation


def evaluate(engine: Engine, sequences: np.ndarray, bytes_per_token: float | None) -> Evaluation:
    """Mean loss over every token of `sequences`, int64 [S, T + 1]. Collective over the engine's ranks.

    The sum runs over all tokens and is divided once. The standard error is that of the mean over
    sequences, whose losses are nearly independent, where those of neighbouring tokens are not.
    """
    length = sequences.shape[1] - 1
    per_sequence = engine.sequence_losses(sequences)
    tokens = length * len(sequences)
    loss = float(per_sequence.sum() / tokens)
    spread = float(np.std(per_sequence / length, ddof=1)) if len(sequences) > 1 else 0.0
    return Evaluation(
        loss=loss,
        loss_stderr=spread / math.sqrt(len(sequences)),
        bits_per_byte=loss / math.log(2) / bytes_per_token if bytes_per_token else None,
        tokens=tokens,
    )
