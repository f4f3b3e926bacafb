"""How much of a CPU's matrix products a training step reaches with a real model on real rows, and where the rest goes.

    python tests/benchmarks/share_of_peak.py --method bradley_terry --data PAIRS --model MODEL
    python tests/benchmarks/share_of_peak.py --method sft --data CONVERSATIONS --model MODEL --give-memory-back

PAIRS or CONVERSATIONS is a file of the method's rows, MODEL the folder that tests/real_model.py prints. A step is the
engine's own, in one process, with the run script's settings and the environment of a local run's worker, what you set
in it included. Three things differ. It computes in fp32, without gradient checkpointing and without compiled layers.
Longer rows than --max-length are left out. And a step is one micro-batch, nearly full of rows drawn at random, computed
twice, and the update. The time is the mean of two steps, after two that are not timed.

The peak is that of the fastest of ten products of 2,048 x 2,048 numbers in fp32, measured before and after, because it
moves by a tenth and more. The operations are those that a step must make (`operations_of` in tests/gpu/speed.py).

Then one more micro-batch is profiled: torch's operations with their shares of its time, the largest first, and all
else.

A worker keeps the memory of freed tensors (`KEEP_MEMORY` in common/cluster.py); --give-memory-back leaves that out. And
its threads wait for work before they sleep (`WAIT_BRIEFLY`); set GOMP_SPINCOUNT to compare other times.
"""

import argparse
import importlib
import os
import random
import sys
import time
from pathlib import Path

from real_pairs import look_for_files

TESTS = Path(__file__).resolve().parents[1]
MICRO_BATCHES = 2  # of a step
SIZE, REPEATS = 2048, 10  # of the product


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("bradley_terry", "sft"), required=True)
    parser.add_argument("--data", type=Path, required=True, help="Parquet file of the method's rows")
    parser.add_argument("--model", type=Path, required=True, help="folder of the language model")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens; longer rows are left out")
    parser.add_argument("--max-tokens", type=int, default=4096, help="of a micro-batch")
    parser.add_argument("--give-memory-back", action="store_true", help="use the C library's own settings")
    options = parser.parse_args()
    look_for_files([options.data], options.model, parser)
    sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "gpu")]
    become_a_worker(not options.give_memory_back, parser)

    import resource

    from shared import join_alone
    from speed import measure

    join_alone()
    step = make_step(options, parser)
    engine = step.engine_class(**step.settings)
    engine.initialize()
    before = speed_of_matmul()
    found = measure(engine, step, options.method, MICRO_BATCHES, peak=1.0)
    after = speed_of_matmul()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    tokens, seconds = found["tokens/s"] * found["step s"] / MICRO_BATCHES, found["step s"]
    print(
        f"{options.method}: {len(step.batch)} rows, {tokens:.0f} tokens in all, computed {MICRO_BATCHES} times in "
        f"{seconds:.1f} s: {found['tokens/s']:.0f} tokens a second, {found['MFU'] / 1e9:.0f} GFLOP/s of "
        f"{before / 1e9:.0f} before and {after / 1e9:.0f} after, a share of {2 * found['MFU'] / (before + after):.3f}. "
        f"Peak memory {memory:.1f} GiB"
    )
    print(profile(engine, step))


def become_a_worker(keep_memory: bool, parser: argparse.ArgumentParser) -> None:
    """Start this process once more if its environment is not a worker's: libraries read it when they are loaded."""
    import torch

    from common.cluster import KEEP_MEMORY, _settings_on_cpu

    if torch.cuda.is_available():
        parser.error("this measures a CPU, and torch finds a GPU. Set CUDA_VISIBLE_DEVICES= to hide it")
    wanted = os.environ | _settings_on_cpu(1)
    if not keep_memory:
        wanted = {name: value for name, value in wanted.items() if name not in KEEP_MEMORY}
    if wanted != os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)


def make_step(options: argparse.Namespace, parser: argparse.ArgumentParser):
    """Return the method's step over rows drawn at random."""
    from memory_table import settings

    from common.attention import SEGMENT_ATTENTION
    from common.tokenizer import end_at_turn, load_tokenizer

    own = [
        "model.enable_gradient_checkpointing=False",
        "engine.use_torch_compile=False",
        "optim.total_training_steps=9",
        f"data.max_tokens_per_gpu={options.max_tokens}",
    ]
    config = settings(options.method, options.model.absolute(), "hf", 1, own)
    config.model.override_config = {"attn_implementation": SEGMENT_ATTENTION}
    config.engine.mixed_precision = {"param_dtype": "fp32"}
    tokenizer = load_tokenizer(str(options.model), False)
    end_at_turn(tokenizer)
    dataset = importlib.import_module(f"{options.method}.dataset")
    load, encode = (
        (dataset.load_conversations, dataset.encode_conversations)
        if options.method == "sft"
        else (dataset.load_pairs, dataset.encode_pairs)
    )
    rows, _ = load(options.data, "drop")
    encoded, _ = encode(rows, tokenizer, options.max_length, "drop", "drop")
    encoded = [row for row in encoded if row.tokens <= options.max_tokens]
    if not encoded:
        parser.error("no row fits --max-length and --max-tokens")
    random.Random(0).shuffle(encoded)
    return importlib.import_module(f"{options.method}.engine").step_to_count(config, 1, encoded, True)


def speed_of_matmul() -> float:
    """Return the operations a second of the fastest of some products of random matrices."""
    import torch

    left, right = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return 2 * SIZE**3 / min(seconds)


def profile(engine, step) -> str:
    """Return a table: what has at least a hundredth of a micro-batch's time, forward and backward."""
    import torch

    with engine.train_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        started = time.perf_counter()
        engine.forward_backward_batch(step.batch.clone(), step.loss)
        seconds = time.perf_counter() - started
    spent = {event.key: event.self_cpu_time_total / 1e6 for event in seen.key_averages() if "::" in event.key}
    shares = sorted(((value / seconds, name) for name, value in spent.items() if value >= seconds / 100), reverse=True)
    shares.append((1 - sum(share for share, _ in shares), "all else"))
    lines = [f"| {name} | {share:.3f} |" for share, name in shares]
    return "\n".join(["| operation | share of the time |", "|---|---|", *lines])


if __name__ == "__main__":
    main()
