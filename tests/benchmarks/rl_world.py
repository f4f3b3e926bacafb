"""What the RL benchmarks share: a policy that answers the demo's queries carelessly, prompts, and the known truth.

The policy has learned from answers that do each of the four things that a query asks for in two cases of three. So it
writes well-formed answers that are somewhat helpful, as a model after SFT does. Whatever it gains in RL, it gains from
the reward.
"""

import json
import random
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import warm_start

from common.demo.tiny_model import save_tiny_model
from common.demo.world import VALUES, draw_response, helpfulness, make_query, make_response

ANSWER = 64  # tokens; the demo's answers have about 40
CARE = 2 / 3  # how often the policy's teacher does what is asked, in each respect
GROUP = 8  # answers to a prompt
PROMPTS = 16  # per step
RATE = 3e-4
# Weight of the distance to the first policy. It was added together with a better first policy, against policies that
# pleased the reward model by nonsense. What each of the two does alone was not measured
KL = 0.04


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def make_policy(folder: Path, seed: int) -> str:
    """Return the folder of a policy that answers carelessly; it is made once."""
    made = folder / "policy"
    if not (made / "config.json").exists():
        rng = random.Random(f"policy-{seed}")
        queries = [make_query(rng, "train") for _ in range(9600)]
        met = [tuple(rng.random() < CARE for _ in VALUES) for _ in queries]
        answers = [make_response(rng, query, of_one).text for query, of_one in zip(queries, met)]
        conversations = [
            [*user(query.text), {"role": "assistant", "content": answer}] for query, answer in zip(queries, answers)
        ]
        save_tiny_model(folder / "tiny", seed)
        warm_start(folder / "tiny", conversations, made, batch_size=16)
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
