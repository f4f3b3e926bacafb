"""What the RL benchmarks share: a policy that answers the demo's queries at random, prompts, and the known truth.

The policy has learned from answers of every helpfulness, 0 to 4 equally often, so it writes well-formed answers whose
helpfulness is 2 of 4 on average. Whatever it gains in RL, it gains from the reward.
"""

import json
import random
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import warm_start

from common.demo.tiny_model import save_tiny_model
from common.demo.world import draw_response, helpfulness, make_query

ANSWER = 64  # tokens; the demo's answers have about 40
GROUP = 8  # answers to a prompt
PROMPTS = 16  # per step


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def make_policy(folder: Path, seed: int) -> str:
    """Return the folder of a policy that answers at random; it is made once."""
    made = folder / "policy"
    if not (made / "config.json").exists():
        rng = random.Random(f"policy-{seed}")
        queries = [make_query(rng, "train") for _ in range(4800)]
        answers = [draw_response(rng, query, rng.randrange(5)).text for query in queries]
        conversations = [
            [*user(query.text), {"role": "assistant", "content": answer}] for query, answer in zip(queries, answers)
        ]
        save_tiny_model(folder / "tiny", seed)
        warm_start(folder / "tiny", conversations, made)
    return str(made)


def make_prompts(split: str, count: int, seed: int, anchored: bool) -> list[dict]:
    """Return queries, each with an anchor of helpfulness 2 if it is wanted."""
    rng = random.Random(f"rl-{split}-{seed}")
    rows = []
    for _ in range(count):
        query = make_query(rng, split)
        rows.append({"prompt": user(query.text)} | ({"anchor": draw_response(rng, query, 2).text} if anchored else {}))
    return rows


def truth(prompt: list[dict], answer: str) -> float:
    """Return the known helpfulness, 0 to 4."""
    return float(helpfulness(prompt[-1]["content"], answer))


def report(steps: list[dict], output: Path, seconds: float) -> None:
    """Print reward and truth of the steps, ten at a time, and write all.

    Args:
        steps: {"reward": mean, "truth": mean, "unscored": share} of each step's answers.
    """
    print(f"{'steps':>9}  reward  truth  unscored")
    for start in range(0, len(steps), 10):
        part = steps[start : start + 10]
        means = [mean(step[name] for step in part) for name in ("reward", "truth", "unscored")]
        print(f"{start + 1:4}-{start + len(part):<4}  {means[0]:6.3f}  {means[1]:5.3f}  {means[2]:.4f}")
    (output / "steps.json").write_text(json.dumps(steps))
    print(f"{len(steps)} steps in {seconds:.0f} s")
