"""A row of a table of measured runs, for tests."""

ROW = {
    "id": "a", "group": "mine", "model": "Llama-2 7B", "layers": "32", "hidden": "4096", "heads": "32",
    "kv_heads": "32", "ffn": "11008", "gated": "True", "vocab": "32000", "seq_len": "4096", "gpu": "A100-SXM-80GB",
    "n_gpus": "64", "tp": "2", "pp": "4", "dp": "8", "micro_batch": "1", "global_batch": "512", "recompute": "none",
    "precision": "bf16", "framework": "Megatron-Core", "step_time_s": "10",
}  # fmt: skip


def row(**changes):
    """A full row, with some columns changed."""
    return ROW | changes
