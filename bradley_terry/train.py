"""Train a reward model on preference pairs. Read it top to bottom: this is all that happens.

    bash run_bt.sh                       # sets every number, then calls: python train.py key=value …

One process, this one, owns the data, the loop, the progress bar, the metrics and the files. The workers, one per GPU or
share of the CPU, hold the sharded model and answer: train_batch, infer_batch, save and load, export. There is no
`if rank == 0`. All input is checked before Ray or a model starts.
"""

import time
from collections import Counter
from functools import partial
from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf
from ray.exceptions import RayActorError
from torchdata.stateful_dataloader import StatefulDataLoader
from tqdm import tqdm

from common import cluster
from common.checkpoint import (
    CheckpointError,
    EpochShuffle,
    check_resume,
    claim_folder,
    export_checkpoint,
    save_checkpoint,
)
from common.parquet import DataError, write_rows
from common.report import draw, read_history, start_tracking, write_model_card
from common.tokenizer import load_tokenizer

from dataset import Pair, collate, describe, digest, encode_pairs, load_pairs, report_leak, report_pairs
from evaluate import pair_metrics
from loss import batch_metrics

SHOWN = ("loss", "accuracy", "margin_mean", "grad_norm", "lr", "tokens_per_second")
USAGE = """
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("checkpoint")
model = AutoModelForSequenceClassification.from_pretrained("checkpoint")
chat = [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]
reward = model(**tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)).logits.item()
"""


@hydra.main(config_path=".", config_name="config", version_base=None)
def main(config: DictConfig) -> None:
    try:
        train(config)
    except (DataError, cluster.ClusterError, CheckpointError, cluster.TrainingError) as error:
        raise SystemExit(f"\ntrain.py: {error}") from None
    except RayActorError as error:
        advice = "the same command goes on from the last checkpoint"
        raise SystemExit(f"\ntrain.py: a worker died; {advice}. {error}") from None
    finally:
        cluster.disconnect()


def train(config: DictConfig) -> None:
    data, trainer = config.data, config.trainer
    output = Path(trainer.output).absolute()

    # 1. Check the input
    model_name, tokenizer = load_tokenizer(config.model)
    train_pairs, val_pairs, set_aside = read_data(config, tokenizer)
    print(f"\nThe first training pair, as the model sees it:\n{describe(train_pairs[0], tokenizer)}\n", flush=True)
    check_sizes(config, train_pairs, val_pairs)

    # 2. Start the cluster and the workers
    device, per_node = cluster.connect(Path(__file__).resolve().parent, trainer.nnodes, trainer.n_gpus_per_node)
    workers = per_node * trainer.nnodes
    if data.train_batch_size % workers:
        raise DataError(f"data.train_batch_size={data.train_batch_size} cannot be shared equally by {workers} workers")
    steps = len(train_pairs) // data.train_batch_size * trainer.total_epochs
    last_step = min(steps, trainer.total_training_steps or steps)
    claim = claim_folder(output)
    cluster.check_shared_folder(output, trainer.nnodes)
    check_resume(output, identity(config, model_name, train_pairs, workers), trainer.resume_mode)
    tokenizer.save_pretrained(output / "tokenizer")
    config.model.tokenizer_path = str(output / "tokenizer")
    config.engine.mixed_precision = {"param_dtype": "fp32" if device == "cpu" else "bf16"}
    config.optim.total_training_steps = steps
    # verl takes seconds to import, so bad input is reported before
    from verl.utils.checkpoint import CheckpointHandler, OrchestrationMode

    from engine import PairWorker, pair_loss

    loss = partial(pair_loss, **config.loss)
    worker_group = cluster.start_workers(PairWorker, "reward_model", loss, config, device, per_node)

    # 3. Start, or resume where an interrupted run of the same settings stopped
    order = EpochShuffle(len(train_pairs), data.train_batch_size, trainer.total_epochs, trainer.seed)
    loader = StatefulDataLoader(train_pairs, batch_size=data.train_batch_size, sampler=order, collate_fn=list)
    resume = {"default_local_dir": str(output), "resume_mode": trainer.resume_mode}
    handler = CheckpointHandler(worker_group, loader, mode=OrchestrationMode.RAY, **resume)
    step = handler.load_checkpoint()
    tracking = start_tracking(output, trainer.project_name, list(trainer.logger), OmegaConf.to_container(config), step)
    validate = partial(log_validation, worker_group, config, val_pairs, workers, tracking)
    if step == 0:
        validate(step)

    # 4. Train
    progress = tqdm(total=last_step, initial=step, desc="train", unit="step", dynamic_ncols=True)
    for pairs in loader if step < last_step else ():
        step += 1
        started = time.perf_counter()
        shared = cluster.balance(pairs, workers)
        batch = cluster.make_batch(shared, collate, data.max_tokens_per_gpu, update_lr_scheduler=True)
        metrics, sums = cluster.join_metrics(worker_group.train_batch(batch).get(), pairs, step)
        metrics |= batch_metrics(sums, len(pairs))
        metrics["seconds"] = time.perf_counter() - started
        metrics["tokens_per_second"] = sum(pair.tokens for pair in pairs) / metrics["seconds"]
        tracking.log({f"train/{name}": value for name, value in metrics.items()}, step)
        progress.update()
        progress.write(f"step {step}/{last_step}  " + "  ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN))
        if trainer.test_freq > 0 and step % trainer.test_freq == 0 and step < last_step:
            validate(step)
        if (trainer.save_freq > 0 and step % trainer.save_freq == 0) or step == last_step:
            save_checkpoint(handler, output, step, trainer.max_ckpt_to_keep)
        if step == last_step:
            break
    progress.close()

    # 5. Leave behind what people and servers use
    rewards = validate(step)
    checkpoint = export_checkpoint(worker_group, output, "checkpoint")
    tracking.finish()
    about = {"base model": model_name, "training pairs": len(train_pairs), "steps": step}
    about |= {"workers": f"{workers} x {device}", "set aside": dict(set_aside) or "no pair"}
    write_report(config, output, about, val_pairs, rewards)
    claim.close()
    print(f"\nreward model, its card and picture: {checkpoint}")


def read_data(config: DictConfig, tokenizer) -> tuple[list[Pair], list[Pair], Counter]:
    """Return the training pairs, the val pairs, and what was set aside of the training rows."""
    data = config.data
    limits = {"max_length": data.max_length, "truncation": data.truncation, "on_bad_row": data.on_bad_row}
    train_rows, bad = load_pairs(data.train_files, data.on_bad_row)
    val_rows, val_bad = load_pairs(data.val_files, data.on_bad_row) if data.val_files else ([], Counter())
    train_pairs, cut = encode_pairs(train_rows, tokenizer, **limits)
    val_pairs, val_cut = encode_pairs(val_rows, tokenizer, **limits) if val_rows else ([], Counter())
    report_pairs("train", train_pairs, bad + cut)
    report_pairs("val", val_pairs, val_bad + val_cut)
    report_leak(train_rows, val_rows)
    return train_pairs, val_pairs, bad + cut


def check_sizes(config: DictConfig, train_pairs: list[Pair], val_pairs: list[Pair]) -> None:
    data = config.data
    if data.train_batch_size > len(train_pairs):
        raise DataError(f"data.train_batch_size={data.train_batch_size} is larger than the {len(train_pairs)} pairs")
    largest = max(pair.tokens for pair in train_pairs + val_pairs)
    if largest > data.max_tokens_per_gpu:
        raise DataError(
            f"data.max_tokens_per_gpu={data.max_tokens_per_gpu} does not hold the largest pair, {largest} tokens with "
            "its prompt counted once. Raise it, or lower data.max_length."
        )
    if config.loss.margin_scale and not any(pair.margin for pair in train_pairs):
        raise DataError(f"loss.margin_scale={config.loss.margin_scale}, but the data has no `margin` above 0")


def identity(config: DictConfig, model_name: str, pairs: list[Pair], workers: int) -> dict:
    """What must be equal for a resumed run to be the same run."""
    return {
        "model": model_name,
        "training pairs": f"{len(pairs)}, digest {digest(pairs)}",
        "workers": workers,
        "data.train_batch_size": config.data.train_batch_size,
        "trainer.total_epochs": config.trainer.total_epochs,
        "trainer.seed": config.trainer.seed,
        "model.lora_rank": config.model.lora_rank,
        "optim": OmegaConf.to_container(config.optim),
        "loss": OmegaConf.to_container(config.loss),
    }


def infer(worker_group, config: DictConfig, pairs: list[Pair], workers: int) -> np.ndarray:
    """Score every pair once, whatever the batch size and the number of workers: (pairs, 2)."""
    from verl.utils import tensordict_utils as tu

    rewards, size = [], config.data.train_batch_size
    for start in tqdm(range(0, len(pairs), size), desc="validate", unit="batch", leave=False, delay=3):
        batch = pairs[start : start + size]
        filled = batch + batch[-1:] * (-len(batch) % workers)  # an equal share for each worker
        result = worker_group.infer_batch(
            cluster.make_batch(filled, collate, config.data.max_tokens_per_gpu, compute_loss=False)
        ).get()
        rewards.append(tu.get(result, "rewards").values().view(-1, 2)[: len(batch)].float().numpy())
    return np.concatenate(rewards)


def log_validation(
    worker_group, config: DictConfig, pairs: list[Pair], workers: int, tracking, step: int
) -> np.ndarray:
    """Score the val pairs, log and show how good that is; return the rewards, (pairs, 2)."""
    if not pairs:
        return np.empty((0, 2), dtype=np.float32)
    rewards = infer(worker_group, config, pairs, workers)
    if not np.isfinite(rewards).all():
        bad = [pair.source for pair, row in zip(pairs, rewards) if not np.isfinite(row).all()]
        raise cluster.TrainingError(f"step {step}: {len(bad)} val rewards are not finite, the first for {bad[0]}")
    metrics = pair_metrics(rewards, pairs)
    tracking.log({f"val/{name}": value for name, value in metrics.items()}, step)
    names = ("accuracy", "longer_wins_accuracy", "margin_mean", "log_loss")
    tqdm.write(f"val at step {step}  " + "  ".join(f"{name} {metrics[name]:.4g}" for name in names))
    return rewards


def write_report(config: DictConfig, output: Path, about: dict, val_pairs: list[Pair], rewards: np.ndarray) -> None:
    """Write the picture, the model card and the reward of every val pair."""
    history = read_history(output)
    panels = {"loss": "loss", "pair accuracy": "accuracy", "mean margin": "margin_mean"}
    curves = {
        title: {part: history[f"{part}/{name}"] for part in ("train", "val") if f"{part}/{name}" in history}
        for title, name in panels.items()
    }
    figures, histograms = {}, {}
    if val_pairs:
        figures = {f"val {name}": value for name, value in pair_metrics(rewards, val_pairs).items()}
        histograms = {"val margins": {"chosen - rejected": (rewards[:, 0] - rewards[:, 1]).tolist()}}
        rows = zip(val_pairs, rewards.tolist())
        rows = [{"source": pair.source, "chosen": row[0], "rejected": row[1]} for pair, row in rows]
        write_rows(output / "val_rewards.parquet", rows)
    draw(output / "checkpoint" / "run.png", curves, histograms)
    for section in ("data", "model", "optim", "loss"):
        about |= {f"{section}.{name}": value for name, value in config[section].items() if not name.startswith("_")}
    write_model_card(
        output / "checkpoint",
        title="Bradley-Terry reward model",
        summary="Gives a conversation one unbounded number. Of two answers to a prompt the better one scores higher: "
        "P(A better than B) = sigmoid(reward of A - reward of B). Rewards of different prompts do not compare.",
        usage=USAGE,
        figures=figures,
        settings=about,
        pipeline_tag="text-classification",
        tags=["reward-model", "bradley-terry"],
    )


if __name__ == "__main__":
    main()
