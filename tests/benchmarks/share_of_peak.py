"""How much of a CPU's matrix products a training step reaches with a real model on real rows, and where the rest goes.

    python tests/benchmarks/share_of_peak.py --method bradley_terry --data PAIRS --model MODEL
    python tests/benchmarks/share_of_peak.py --method sft --data CONVERSATIONS --model MODEL --give-memory-back

PAIRS or CONVERSATIONS is a file of the method's rows, MODEL the folder that tests/real_model.py prints. A step is the
engine's own in one process, with the run script's settings but for batch size and fp32, and layers computed once. It
computes one micro-batch, as full as rows drawn at random make it, a few times, and updates the weights.

The peak is that of one large product in fp32, measured before and after, because it moves by a tenth and more. The
operations are those that a step must make (`operations_of` in tests/gpu/speed.py). Then the profile of one more
micro-batch: each of torch's operations with its share of the time, the largest first.

Workers keep the memory of large tensors (`KEEP_MEMORY` in common/cluster.py), and so does this process, unless
--give-memory-back.
"""

import argparse
import importlib
import os
import random
import sys
import time
from pathlib import Path

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
    parser.add_argument("--give-memory-back", action="store_true", help="as processes do that are not told otherwise")
    options = parser.parse_args()
    if missing := [str(path) for path in (options.data, options.model / "config.json") if not path.exists()]:
        parser.error(f"there is no {', no '.join(missing)}")
    sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "gpu")]
    keep_memory(not options.give_memory_back)

    import resource

    from shared import join_alone
    from speed import measure

    join_alone()
    step = make_step(options)
    engine = step.engine_class(**step.settings)
    engine.initialize()
    before = speed_of_matmul()
    found = measure(engine, step, options.method, MICRO_BATCHES, peak=1.0)
    after = speed_of_matmul()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{options.method}: {len(step.batch)} rows of {found['tokens/s'] * found['step s'] / MICRO_BATCHES:.0f} tokens "
        f"{MICRO_BATCHES} times in {found['step s']:.1f} s, {found['tokens/s']:.0f} tokens a second, "
        f"{found['MFU'] / 1e9:.0f} GFLOP/s of {before / 1e9:.0f} before and {after / 1e9:.0f} after: "
        f"{2 * found['MFU'] / (before + after):.3f}. Peak memory {memory:.1f} GiB"
    )
    print(profile(engine, step))


def keep_memory(wanted: bool) -> None:
    """Start this process once more if the C library was not told, or was told otherwise: it reads that at its start."""
    from common.cluster import KEEP_MEMORY

    others = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    right = others | (KEEP_MEMORY if wanted else {})
    if right != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], right)


def make_step(options: argparse.Namespace):
    """Return the method's step over rows drawn at random."""
    from memory_table import settings

    from common.attention import SEGMENT_ATTENTION
    from common.tokenizer import end_at_turn, load_tokenizer

    own = [
        "model.enable_gradient_checkpointing=False",
        "engine.use_torch_compile=False",
        "optim.total_training_steps=9",
    ]
    own.append(f"data.max_tokens_per_gpu={options.max_tokens}")
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
    """Return torch's operations in one micro-batch, those with at least a hundredth of the time, as a table."""
    import torch

    with engine.train_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        engine.forward_backward_batch(step.batch.clone(), step.loss)
    events = seen.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares = sorted(((event.self_cpu_time_total / total, event.key) for event in events), reverse=True)
    lines = [f"| {name} | {share:.3f} |" for share, name in shares if share >= 0.01]
    return "\n".join(["| operation | share of the time |", "|---|---|", *lines])


if __name__ == "__main__":
    main()
