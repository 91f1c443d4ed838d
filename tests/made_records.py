"""Small runs and their records, made without training."""

from scaling.accounting import parameter_count, training_flops
from scaling.config import RunConfig
from scaling.record import RunRecord


def config(hidden_size=64, num_layers=2, train_steps=500, global_batch_size=4, seq_length=128, **execution):
    return RunConfig.model_validate(
        {
            "model": {"num_layers": num_layers, "hidden_size": hidden_size, "num_attention_heads": 1},
            "data": {"name": "text", "fingerprint": "0", "seq_length": seq_length, "validation_sequences": 64},
            "optimizer": {"learning_rate": 0.01},
            "global_batch_size": global_batch_size,
            "train_steps": train_steps,
            "execution": execution,
        }
    )


def record(run: RunConfig, seconds: float, device="AMD EPYC", status="finished") -> RunRecord:
    count = parameter_count(run.model)
    return RunRecord.model_validate(
        {
            "run_id": run.run_id,
            "status": status,
            "schedule_finished": True,
            "config": run,
            "parameters": count.total,
            "parameters_non_embedding": count.non_embedding,
            "parameters_active": count.active,
            "tokens": run.tokens,
            "flops": training_flops(run),
            "train_loss": 2.0,
            "evaluation": None,
            "speed": {
                "device": device, "dtype": "float32", "dtype_reason": "", "num_threads": 1, "seconds": seconds,
                "tokens_per_second": run.tokens / seconds, "mfu_causal": None, "mfu_full": None, "peak_flops": None,
                "peak_flops_source": None, "peak_memory_bytes": None, "energy_joules": None, "energy_source": None,
                "device_hours": seconds / 3600,
            },
            "host": "host",
            "started_at": "2026-11-21T00:00:00+00:00",
            "finished_at": "2026-11-21T00:01:00+00:00",
        }
    )  # fmt: skip
