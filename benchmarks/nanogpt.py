"""A 500-step training run on this CPU against nanoGPT, start-up included.

    python benchmarks/nanogpt.py PATH_OF_A_NANOGPT_CHECKOUT

Each contender is a fresh process: interpreter start, imports, data, 500 optimizer steps, one evaluation
over the same held-out tokens. Contenders take turns, so that a change of the machine's speed meets all.
nanoGPT's model.py is used as it is, with the loop of its train.py (random crops from a memory map,
clipping, cosine schedule, a log line every 10 steps), eager or with torch.compile (cold compiler cache,
as in a first run). Both sides: float32, fused AdamW, the same batch, sequence length and threads, the same
text, and parameter counts within 5 %.

Prints a Markdown table; --json writes every time.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 500
SEQ_LENGTH = 128
VALIDATION_SEQUENCES = 64
#: label: (layers, hidden size, heads, batch)
SIZES = {"0.1M": (2, 64, 2, 8), "1M": (5, 128, 4, 8), "10M": (6, 384, 6, 4)}

NANOGPT = r"""
import math, os, sys, time
checkout, data, layers, hidden, heads, batch, length, steps, sequences, threads, compiled = sys.argv[1:]
layers, hidden, heads, batch, length, steps, sequences, threads = map(int, (layers, hidden, heads, batch, length, steps, sequences, threads))
sys.path.insert(0, checkout)
import numpy as np
import torch
from model import GPT, GPTConfig
torch.set_num_threads(threads)
torch.manual_seed(1337)
model = GPT(GPTConfig(block_size=length, vocab_size=256, n_layer=layers, n_head=heads, n_embd=hidden, dropout=0.0, bias=False))
groups = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu").param_groups
optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
count = sum(p.numel() for p in model.parameters())
if compiled == "compiled":
    model = torch.compile(model)
def crops(split, starts):
    tokens = np.memmap(os.path.join(data, split + ".bin"), dtype=np.uint8, mode="r")
    x = torch.stack([torch.from_numpy(tokens[i:i + length].astype(np.int64)) for i in starts])
    y = torch.stack([torch.from_numpy(tokens[i + 1:i + 1 + length].astype(np.int64)) for i in starts])
    return x, y
size = os.path.getsize(os.path.join(data, "train.bin"))
loop = time.perf_counter()
for step in range(steps):
    rate = 1e-3 * min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / steps)))
    for group in optimizer.param_groups:
        group["lr"] = rate
    x, y = crops("train", torch.randint(size - length, (batch,)))
    _, loss = model(x, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if step % 10 == 0:
        print(step, loss.item(), file=sys.stderr)
loop = time.perf_counter() - loop
model.eval()
with torch.no_grad():
    total = sum(model(*crops("validation", range(i * length, (i + batch) * length, length)))[1].item() for i in range(0, sequences, batch))
print(f"RESULT {count} {loop} {total * batch / sequences}")
"""

OURS = r"""
import sys
from pathlib import Path
from scaling.config import load_config
from scaling.train import train
record = train(load_config(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
causal = record.flops.causal / record.speed.seconds
print(f"RESULT {record.parameters} {record.speed.seconds} {record.evaluation.loss} {causal} {record.speed.peak_flops} {record.kernels['matmul']['backend']}")
"""


def _timed(command: list[str], threads: int) -> tuple[float, list[str]]:
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
        }
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        seconds = time.perf_counter() - start
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if done.returncode or not results:
        raise SystemExit(f"{command[:3]} failed:\n{done.stderr[-3000:]}")
    return seconds, results[-1].split()[1:]


def _config(corpus, size: tuple[int, int, int, int], threads: int) -> str:
    import yaml

    layers, hidden, heads, batch = size
    return yaml.safe_dump(
        {
            "model": {"num_layers": layers, "hidden_size": hidden, "num_attention_heads": heads},
            "data": {
                "name": corpus.name,
                "fingerprint": corpus.fingerprint,
                "seq_length": SEQ_LENGTH,
                "validation_sequences": VALIDATION_SEQUENCES,
            },
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"warmup_steps": 50},
            "global_batch_size": batch,
            "train_steps": STEPS,
            "execution": {
                "device": "cpu",
                "dtype": "float32",
                "num_threads": threads,
                "checkpoint_interval_seconds": 0,
            },
        }
    )


def measure(checkout: Path, label: str, threads: int, repeats: int, corpus) -> dict:
    """All times of one size, contenders in turns."""
    layers, hidden, heads, batch = size = SIZES[label]
    names = ("scaling-lab", "nanoGPT eager", "nanoGPT compiled")
    times: dict[str, list[float]] = {name: [] for name in names}
    loops: dict[str, list[float]] = {name: [] for name in names}
    out: dict = {"size": label, "threads": threads, "batch": batch, "seq_length": SEQ_LENGTH, "steps": STEPS}
    for repeat in range(repeats):
        for name in names:
            with tempfile.TemporaryDirectory() as scratch:
                if name == "scaling-lab":
                    config = Path(scratch) / "config.yaml"
                    config.write_text(_config(corpus, size, threads))
                    command = [sys.executable, "-c", OURS, str(config), f"{scratch}/run", str(corpus.path)]
                else:
                    numbers = (layers, hidden, heads, batch, SEQ_LENGTH, STEPS, VALIDATION_SEQUENCES, threads)
                    command = [
                        sys.executable,
                        "-c",
                        NANOGPT,
                        str(checkout),
                        str(corpus.path),
                        *map(str, numbers),
                        name.split()[1],
                    ]
                seconds, result = _timed(command, threads)
            times[name].append(seconds)
            loops[name].append(float(result[1]))
            out.setdefault("parameters", {})[name] = int(result[0])
            out.setdefault("validation_loss", {})[name] = float(result[2])
            if name == "scaling-lab":
                out["causal_flops_per_second"], out["matmul_flops_per_second"] = float(result[3]), float(result[4])
                out["matmul"] = result[5]
            print(
                f"{label} {threads} threads, {name}: {seconds:.1f} s (loop {loops[name][-1]:.1f} s)",
                file=sys.stderr,
                flush=True,
            )
    out["seconds"], out["loop_seconds"] = times, loops
    return out


def _row(result: dict) -> str:
    middle = {name: statistics.median(values) for name, values in result["seconds"].items()}
    spread = {
        name: f"{m:.1f} ({min(v):.1f}-{max(v):.1f})" for (name, v), m in zip(result["seconds"].items(), middle.values())
    }
    ratio = min(middle["nanoGPT eager"], middle["nanoGPT compiled"]) / middle["scaling-lab"]
    share = result["causal_flops_per_second"] / result["matmul_flops_per_second"]
    cells = [result["size"], result["threads"], *spread.values(), f"**{ratio:.2f}x**"]
    cells += [
        f"{result['causal_flops_per_second'] / 1e9:.0f} of {result['matmul_flops_per_second'] / 1e9:.0f} ({share:.0%})"
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a nanoGPT checkout (holds model.py)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--json", type=Path, help="write every time to this file")
    arguments = parser.parse_args()
    if not (arguments.checkout / "model.py").is_file():
        raise SystemExit(f"{arguments.checkout}: holds no model.py; give the path of a nanoGPT checkout")
    import torch

    from scaling.data.prepare import prepare_corpus
    from scaling.telemetry import device_name

    corpus = prepare_corpus("python", arguments.data_dir)
    results = [
        measure(arguments.checkout, size, threads, arguments.repeats, corpus)
        for size in arguments.sizes
        for threads in arguments.threads
    ]
    machine = f"{device_name(torch.device('cpu'))}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}, {platform.system()}"
    print(f"{machine}, {time.strftime('%Y-%m-%d')}; seconds for {STEPS} steps, median (range) of {arguments.repeats}\n")
    print(
        "| model | threads | scaling-lab | nanoGPT eager | nanoGPT compiled | faster than the better | causal model GFLOP/s of matmul GFLOP/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for result in results:
        print(_row(result))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
