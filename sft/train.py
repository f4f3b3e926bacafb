"""Train a language model on conversations. Read it top to bottom: this is all that happens.

    bash run_sft.sh                      # sets every number, then starts this file with key=value …

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
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torchdata.stateful_dataloader import StatefulDataLoader
from tqdm import tqdm
from transformers import AutoModelForCausalLM as AutoModel

from common import cluster, failures, plan, training
from common.base_model import BaseModel, limit_length, load_base
from common.card import write_model_card
from common.checkpoint import (
    CheckpointError,
    EpochShuffle,
    check_resume,
    claim_folder,
    export_checkpoint,
    how_to_go_on,
    save_checkpoint,
)
from common.conversation import DataError
from common.data_report import data_report
from common.files import content_digest
from common.packing import PACKED, attention_of, choose_packing
from common.page.page import Page, by_split, curve_pictures, explained, write_page
from common.parquet import Faults, datasets_of, left_out_figures
from common.report import (
    Curves,
    draw,
    format_value,
    read_history,
    start_tracking,
    training_curves,
)

from .dataset import (
    Example,
    as_item,
    collate,
    describe,
    digest_examples,
    encode_conversations,
    load_conversations,
    report_examples,
)
from .evaluate import token_metrics
from .loss import batch_metrics
from .page import BASELINES, conversation_examples, conversation_pictures

SHOWN = ("loss", "token_accuracy", "grad_norm", "lr", "tokens_per_second")
USAGE = """
from transformers import pipeline

generate = pipeline("text-generation", model="checkpoint")
chat = [{"role": "user", "content": "…"}]
answer = generate(chat, max_new_tokens=512, do_sample=False)[0]["generated_text"][-1]["content"]
"""


@hydra.main(config_path=".", config_name="config", version_base=None)
def main(config: DictConfig) -> None:
    try:
        training.refuse_added(HydraConfig.get().overrides.task, Path(__file__).with_name("config.yaml"))
        train(config)
    except (DataError, cluster.ClusterError, CheckpointError, cluster.TrainingError) as error:
        raise SystemExit(f"\ntrain.py: {error}") from None
    except failures.OF_WORKERS as error:
        raise SystemExit(f"\ntrain.py: {failures.explain(error)}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"\ntrain.py: stopped; {how_to_go_on(config.trainer)}") from None
    finally:
        cluster.disconnect()


def train(config: DictConfig) -> None:
    data, trainer = config.data, config.trainer
    output = Path(trainer.output).absolute()

    # 1. Check the input
    planned = plan.is_asked(config.plan)
    cluster.check_counts(trainer.nnodes, trainer.n_gpus_per_node)
    base = load_base(config.model, data, AutoModel, data.template_options, "data.template_options", not planned)
    tokenizer = base.tokenizer
    data.max_length = limit_length(data.max_length, base, "data.max_length")
    rows_of, set_aside_of, texts_of = read_data(config, base)
    train_rows, val_rows = rows_of["train"], rows_of["val"]
    datasets = datasets_of(data.train_files)
    print(f"\nThe first conversation, as the model sees it:\n{describe(train_rows[0], tokenizer)}\n", flush=True)

    packing = choose_packing(base.config, AutoModel, data.packing, config.model.path)
    config.model.override_config = {"attn_implementation": attention_of(packing, base.config, AutoModel)}
    check_conversation_sizes(config, rows_of, packing == PACKED)
    heaviest = sorted(train_rows, key=lambda example: (-example.tokens, -example.mask.sum()))
    method = plan.of_loop(f"{__package__}.engine", heaviest, data.train_batch_size, packing == PACKED)
    if planned:
        config.engine.mixed_precision = config.engine.mixed_precision or {"param_dtype": plan.PRECISION}
        plan.show(method, config, trainer.nnodes, trainer.n_gpus_per_node)
        return

    # 2. Start the cluster and the workers
    machines = cluster.connect(__package__, trainer.nnodes, trainer.n_gpus_per_node)
    workers = machines.workers_per_node * trainer.nnodes
    if data.train_batch_size % workers:
        raise DataError(f"data.train_batch_size={data.train_batch_size} cannot be shared equally by {workers} workers")
    steps = len(train_rows) // data.train_batch_size * trainer.total_epochs
    last_step = min(steps, trainer.total_training_steps or steps)
    config.engine.mixed_precision = config.engine.mixed_precision or {"param_dtype": machines.precision}
    plan.settle(method, config, workers, machines)
    claim = claim_folder(output)
    cluster.check_shared_folder(output, trainer.nnodes)
    check_resume(output, identity(config, base.name, train_rows, workers), trainer.resume_mode)
    OmegaConf.save(config, output / "settings.yaml")
    tokenizer.save_pretrained(output / "tokenizer")
    config.model.tokenizer_path = str(output / "tokenizer")
    config.optim.total_training_steps = steps
    # verl takes seconds to import, so bad input is reported before
    from verl.utils.checkpoint import CheckpointHandler, OrchestrationMode

    from .engine import sft_loss

    worker_group = training.start_workers("packed_language_model", f"{__package__}.engine", sft_loss, config, machines)

    # 3. Start, or resume where an interrupted run of the same settings stopped
    order = EpochShuffle(len(train_rows), data.train_batch_size, trainer.total_epochs, trainer.seed)
    loader = StatefulDataLoader(train_rows, batch_size=data.train_batch_size, sampler=order, collate_fn=list)
    places = {"default_local_dir": str(output), "resume_mode": trainer.resume_mode, "mode": OrchestrationMode.RAY}
    handler = CheckpointHandler(worker_group, loader, **places)
    step = handler.load_checkpoint()
    settings = OmegaConf.to_container(config, resolve=True)
    tracking = start_tracking(output, trainer.project_name, list(trainer.logger), settings, step)
    limits = (data.max_tokens_per_gpu, workers, packing == PACKED)
    measure = partial(infer, worker_group, data.train_batch_size, limits)
    print(f"\nresuming after step {step} of {last_step}" if step else "\nstarting")
    if step == 0:
        log_metrics("val", val_rows, measure(val_rows), tracking, step)

    # 4. Train
    progress = tqdm(total=last_step, initial=step, desc="train", unit="step", dynamic_ncols=True)
    for rows in loader if step < last_step else ():
        step += 1
        started = time.perf_counter()
        shared = training.balance(rows, workers)
        batch = training.make_batch(shared, collate, *limits, update_lr_scheduler=True)
        metrics, sums, _ = training.train_batch(worker_group, batch, rows, step)
        metrics |= batch_metrics(sums)
        metrics["seconds"] = time.perf_counter() - started
        metrics["tokens_per_second"] = sum(row.tokens for row in rows) / metrics["seconds"]
        tracking.log({f"train/{name}": value for name, value in metrics.items()}, step)
        progress.update()
        progress.write(f"step {step}/{last_step}  " + "  ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN))
        if trainer.test_freq > 0 and step % trainer.test_freq == 0 and step < last_step:
            log_metrics("val", val_rows, measure(val_rows), tracking, step)
        if (trainer.save_freq > 0 and step % trainer.save_freq == 0) or step == last_step:
            save_checkpoint(partial(handler.save_checkpoint, step=step), output, step, trainer.max_ckpt_to_keep)
        if step == last_step:
            break
    progress.close()

    # 5. Leave behind what people and servers use
    figures, values_of = {}, {name: measure(rows_of[name]) for name in ("val", "test") if rows_of[name]}
    for name, values in values_of.items():
        figures |= log_metrics(name, rows_of[name], values, tracking, step)
    end_of_turn = sorted({row.end_of_turn for row in train_rows})
    checkpoint = export_checkpoint(worker_group, output, "checkpoint", end_of_turn)
    tracking.finish()
    about = {"base model": base.name, "training conversations": len(train_rows), "steps": step}
    about |= {f"{name}: set aside or cut": dict(counts) for name, counts in set_aside_of.items()}
    measured = by_split(figures)
    figures |= left_out_figures(set_aside_of)
    curves = write_report(config, output, figures, about, datasets)
    held_out = [(name, rows_of[name], values) for name, values in values_of.items()]
    page = Page(
        title="Fine-tuned language model",
        about=about,
        figures=measured,
        baselines=BASELINES,
        left_out=set_aside_of,
        pictures=curve_pictures(curves) + [picture for part in held_out for picture in conversation_pictures(*part)],
        examples=[conversation_examples(*part, texts_of[part[0]]) for part in held_out],
        meaning=explained(token_metrics),
        rest="All conversations are in the data's files, by their source.",
    )
    write_page(output / "report.html", page)
    claim.release()
    lines = [f"{name:32} {format_value(value)}" for name, value in figures.items()]
    lines = lines or ["nothing was held out: set VAL_FILES or TEST_FILES to measure the model"]
    print("\n".join(["", *lines, "", f"model, its card and picture: {checkpoint}"]))
    print(f"what it predicts worst: open {output / 'report.html'} in a browser")


def read_data(config: DictConfig, base: BaseModel) -> tuple[dict[str, list[Example]], dict[str, Counter], dict]:
    """Return the conversations of train, val and test, what was set aside of each, and rows of val and test by source.

    One error tells all faults of all files.
    """
    data, rows_of, set_aside_of, read_of, faults = config.data, {}, {}, {}, Faults()
    for name, files in {"train": data.train_files, "val": data.val_files, "test": data.test_files}.items():
        rows_of[name], set_aside_of[name], read_of[name] = [], Counter(), []
        with faults.gathered():
            if files:
                read_of[name], bad = load_conversations(files, data.on_bad_row, faults)
                limits = (data.max_length, data.truncation, data.on_bad_row, data.turns, base.embeddings)
                rows_of[name], cut = encode_conversations(read_of[name], base.tokenizer, *limits, faults)
                set_aside_of[name] = bad + cut
    faults.raise_all()
    for name, rows in rows_of.items():
        report_examples(name, rows, set_aside_of[name])
    kept = {name: {row.source for row in rows} for name, rows in rows_of.items()}
    items_of = {name: [as_item(row) for row in rows if row["source"] in kept[name]] for name, rows in read_of.items()}
    print("\n".join(data_report(items_of)))
    return rows_of, set_aside_of, {name: {row["source"]: row for row in read_of[name]} for name in ("val", "test")}


def check_conversation_sizes(config: DictConfig, rows_of: dict[str, list[Example]], packed: bool) -> None:
    data, count = config.data, len(rows_of["train"])
    if count < data.train_batch_size:
        raise DataError(
            f"data.train_batch_size={data.train_batch_size} is larger than the {count} conversations; "
            f"lower it, for example to {max(1, count // 4)}"
        )
    if left_over := count % data.train_batch_size:
        print(f"  {left_over} training conversations, others each epoch, do not fill a batch and are left out")
    largest = max(row.tokens if packed else row.padded_tokens for rows in rows_of.values() for row in rows)
    if largest > data.max_tokens_per_gpu:
        raise DataError(
            f"data.max_tokens_per_gpu={data.max_tokens_per_gpu} does not hold the largest conversation, {largest} "
            "tokens. Raise it, or lower data.max_length."
        )


def identity(config: DictConfig, model_name: str, rows: list[Example], workers: int) -> dict:
    """What must be equal for a resumed run to be the same run."""
    return {
        "model": model_name,
        "training conversations": f"{len(rows)}, digest {digest_examples(rows)}",
        "workers": workers,
        "attention": config.model.override_config["attn_implementation"],
        "data.train_batch_size": config.data.train_batch_size,
        "trainer.total_epochs": config.trainer.total_epochs,
        "trainer.seed": config.trainer.seed,
        "lora": {key: str(config.model[key]) for key in ("lora_rank", "lora_alpha", "target_modules")},
        "engine.fsdp_size": config.engine.fsdp_size,
        "engine.mixed_precision": OmegaConf.to_container(config.engine.mixed_precision),
        "optim": OmegaConf.to_container(config.optim),
        **{name: content_digest(Path(__file__).with_name(name)) for name in ("engine.py", "loss.py")},
    }


def infer(worker_group, size: int, limits: tuple[int, int, bool], rows: list[Example]) -> list[np.ndarray]:
    """Measure every conversation once, whatever the batch size and the number of workers: see `token_metrics`."""
    from verl.utils import tensordict_utils as tu

    measured = []
    for start in tqdm(range(0, len(rows), size), desc="measure", unit="batch", leave=False, delay=3):
        batch = rows[start : start + size]
        filled = batch + batch[-1:] * (-len(batch) % limits[1])  # an equal share for each worker
        batch_of_all = training.make_batch(filled, collate, *limits, compute_loss=False)
        result = worker_group.infer_batch(batch_of_all).get()
        columns = (tu.get(result, name).unbind()[: len(batch)] for name in ("losses", "correct"))
        measured += [torch.stack(pair).float().numpy() for pair in zip(*columns)]
    return measured


def log_metrics(name: str, rows: list[Example], measured: list, tracking, step: int) -> dict[str, float]:
    """Log and show how well held-out conversations are predicted."""
    if not rows:
        return {}
    bad = [row.source for row, values in zip(rows, measured) if not np.isfinite(values).all()]
    if bad:
        raise cluster.TrainingError(f"step {step}: {len(bad)} {name} losses are not finite, the first for {bad[0]}")
    metrics = {f"{name}/{key}": value for key, value in token_metrics(measured).items()}
    tracking.log(metrics, step)
    shown = ("loss", "perplexity", "token_accuracy")
    tqdm.write(f"{name} at step {step}  " + "  ".join(f"{key} {metrics[f'{name}/{key}']:.4g}" for key in shown))
    return metrics


def write_report(config: DictConfig, output: Path, figures: dict, about: dict, datasets: set[str]) -> list[Curves]:
    """Write the picture and the model card; return the training curves."""
    history = read_history(output)
    panels = {
        "loss, nats a token": ("train/loss", "val/loss"),
        "token accuracy": ("train/token_accuracy", "val/token_accuracy"),
    }
    curves = training_curves(history, panels)
    draw(output / "checkpoint" / "run.png", curves)
    for section in ("data", "model", "optim"):
        about |= {f"{section}.{name}": value for name, value in config[section].items() if not name.startswith("_")}
    write_model_card(
        output / "checkpoint",
        title="Fine-tuned language model",
        summary="Answers as the assistant does in the conversations it was trained on. Trained on a judge's "
        "conversations it judges: it reasons between `<think>` and `</think>` and ends with its verdict.",
        usage=USAGE,
        figures=figures,
        settings=about,
        base=config.model.path,
        datasets=datasets,
        tested=config.data.test_files,
        results={"loss": "test/loss", "token_accuracy": "test/token_accuracy"},
        task="text-generation",
        tags=["sft", "llm-judge"],
    )
    return curves


if __name__ == "__main__":
    main()
