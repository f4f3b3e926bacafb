"""Score any number of rows with a trained reward model: Parquet in, the same rows with their rewards out.

    python -m bradley_terry.score --model outputs/checkpoint --input 'rows/*.parquet' --output scored
    RAY_ADDRESS=head:6379 python -m bradley_terry.score …         # the same on a cluster, all paths in a shared folder
    python -m bradley_terry.score --model seed_0 --ensemble seed_1 seed_2 --pessimism 1 …   # several models at once

Ray Data reads the files in parts, a pool of model actors scores them, and every part appears whole, as
`scored/part-000000.parquet`: all columns kept, the rewards beside them. Few rows are scored by one model in this
process, since Ray takes longer to start. Started again after a crash, the command scores what is left, and every row is
there exactly once, in its order. Texts that start alike share a batch, and the prompt of several responses is computed
once; the others are batched by length, so that hardly anything is padding. A row that cannot be scored keeps its place,
without a reward, and is listed with the reason in `scored/_bad_rows.jsonl`.
"""

import argparse
import glob
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import transformers
from tqdm import tqdm

from common.checkpoint import CheckpointError, claim_folder
from common.cluster import ClusterError, check_shared_folder, connect, disconnect
from common.conversation import (
    BadRow,
    Conversation,
    DataError,
    check_response,
    read_conversation,
    read_dialogue,
    read_response,
    read_responses,
)
from common.files import content_digest, tails_digest, write_text
from common.pairs import optional_columns, read_sides
from common.parquet import column_names, expand_paths

from .parts import FilePlan, check_same_run, part_path, part_size, plan_parts, read_parts, write_part
from .reward_model import Reading, check_pessimism, encode, load_reading, load_reward_model, pessimistic, score

# what a row may hold, and the columns of its rewards; "rewards" is a list, one for each response
SHAPES = {
    ("chosen", "rejected"): ("chosen_reward", "rejected_reward"),
    ("messages",): ("reward",),
    ("query", "response"): ("reward",),
    ("input", "output"): ("rewards",),
}
ERROR = "reward_error"
FEW = 2000  # rows; Ray and its actors take some 20 s to start
MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py")


def shape_of(file: str) -> tuple[str, ...]:
    """Return which columns of a file hold what is to be scored; raise `DataError` if none do."""
    names = column_names(Path(file))
    shape = next((shape for shape in SHAPES if set(shape) <= set(names)), None)
    if shape is None:
        expected = ", or ".join(" and ".join(shape) for shape in SHAPES)
        raise DataError(f"{file}: expected the columns {expected}; found {', '.join(names)}. Rename them.")
    if unread := [name for name in names if name not in columns_of(shape, names)]:
        print(f"{file}: kept, and not read: {', '.join(unread)}")
    if taken := {*SHAPES[shape], ERROR} & set(names):
        raise DataError(f"{file}: there is a column {', '.join(sorted(taken))} already, which scoring adds. Rename it.")
    return shape


def columns_of(shape: tuple[str, ...], names: list[str]) -> list[str]:
    """Return the columns that are read: of pairs also those that may hold a part of the prompt."""
    beside = optional_columns(names) if shape == ("chosen", "rejected") else ()
    return [name for name in names if name in shape or name in beside]


def read_texts(row: dict, shape: tuple[str, ...]) -> list[Conversation | str]:
    """Return the whole conversations, or plain texts, that a row wants rewards for; raise `BadRow` if it holds none."""
    if shape == ("input", "output"):
        dialogue, responses = read_dialogue(row["input"]), read_responses(row["output"], 1)
    elif shape == ("query", "response"):
        dialogue, responses = read_dialogue(row["query"], "query"), [read_response(row["response"])]
    elif shape == ("chosen", "rejected"):
        sides = read_sides(row)
        for name, side in sides.items():
            if not isinstance(side, str):
                check_response(name, side)
        return list(sides.values())
    else:
        return [read_conversation(column, row[column]) for column in shape]
    answers = [{"role": "assistant", "content": response} for response in responses]
    return [read_conversation(shape[1], [*dialogue, answer]) for answer in answers]


def read_blocks(batch: dict, size: int) -> Iterator[dict]:
    """Yield the wanted parts of files, for Ray Data: a part's number, and its rows as an Arrow stream."""
    for values in zip(*batch.values()):
        for number, table in read_parts(FilePlan(*values), size):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            yield {"part": [number], "rows": [sink.getvalue().to_pybytes()]}


class Scorer:
    """A model, or several, that scores parts and writes them; one of Ray Data's actors, or alone."""

    def __init__(self, shape: tuple[str, ...], options: argparse.Namespace):
        transformers.utils.logging.disable_progress_bar()
        self.shape, self.options = shape, options
        dtype = getattr(torch, options.dtype)
        self.members = [
            load_reward_model(model, True, dtype, options.trust_remote_code) for model in models_of(options)
        ]

    def __call__(self, batch: dict) -> dict:
        (number,), (stream,) = batch["part"], batch["rows"]
        return {"rows": [self.score_part(int(number), pa.ipc.open_stream(stream).read_all())]}

    def score_part(self, number: int, table: pa.Table) -> int:
        """Write a part, and return how many rows it holds."""
        write_part(self.options.output, number, self.score_rows(table))
        return table.num_rows

    def score_rows(self, table: pa.Table) -> pa.Table:
        """Return rows with their rewards, or with the reason why there are none."""
        encoded, errors = [], []  # of each row: for each model the token ids of its texts; and what is wrong with it
        for row in table.select(columns_of(self.shape, table.column_names)).to_pylist():
            try:
                encoded.append([self.encode_row(row, reading) for _, reading in self.members])
                errors.append(None)
            except BadRow as fault:
                encoded.append([[] for _ in self.members])
                errors.append(fault.in_column)
        of_models = [
            score(model, [ids for of_row in encoded for ids in of_row[place]], self.options.max_tokens)
            for place, (model, _) in enumerate(self.members)
        ]
        rewards = iter(pessimistic(np.array(of_models), self.options.pessimism).tolist())
        rewards_of = [[next(rewards) for _ in of_row[0]] for of_row in encoded]
        for number, of_row in enumerate(rewards_of):
            if not all(map(math.isfinite, of_row)):
                rewards_of[number], errors[number] = [], f"the model gives no finite reward (found {of_row})"
        for name, column in self.reward_columns(rewards_of).items():
            table = table.append_column(name, column)
        return table.append_column(ERROR, pa.array(errors, pa.string()))

    def encode_row(self, row: dict, reading: Reading) -> list[np.ndarray]:
        """Return the token ids of each text of a row, as a model reads it; raise `BadRow` if one cannot be scored."""
        texts = read_texts(row, self.shape)
        columns = self.shape if self.shape == ("chosen", "rejected") else self.shape[-1:] * len(texts)
        limit = self.options.max_length
        return [encode(text, reading, column, limit) for text, column in zip(texts, columns)]

    def reward_columns(self, rewards_of: list[list[float]]) -> dict[str, pa.Array]:
        """Return the columns of the rewards, null for a row without."""
        names = SHAPES[self.shape]
        if names == ("rewards",):
            return {"rewards": pa.array([of_row or None for of_row in rewards_of], pa.list_(pa.float32()))}
        return {
            name: pa.array([of_row[place] if of_row else None for of_row in rewards_of], pa.float32())
            for place, name in enumerate(names)
        }


def score_left(
    plans: list[FilePlan], size: int, shape: tuple[str, ...], options: argparse.Namespace, done: int
) -> None:
    """Score what is left, with a progress bar over all rows."""
    total = sum(plan.rows for plan in plans)
    few = total - done <= FEW and options.workers in (None, 1) and not os.environ.get("RAY_ADDRESS")
    with tqdm(total=total, initial=done, desc="score", unit="row") as progress:
        for rows in (score_here if few else score_by_actors)(plans, size, shape, options):
            progress.update(rows)


def score_here(plans: list[FilePlan], size: int, shape: tuple[str, ...], options: argparse.Namespace) -> Iterator[int]:
    """Score what is left in this process, and yield how many rows of it are done."""
    scorer = Scorer(shape, options)
    for plan in plans:
        for number, table in read_parts(plan, size):
            yield scorer.score_part(number, table)


def score_by_actors(
    plans: list[FilePlan], size: int, shape: tuple[str, ...], options: argparse.Namespace
) -> Iterator[int]:
    """Have a pool of actors score what is left, and yield how many rows of it are done."""
    device, workers = start_ray(options)
    check_shared_folder(options.output, nodes=1)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a part is a block, so that it goes to whichever actor is free
    context.execution_no_progress_timeout_s = 24 * 3600  # by default a part that takes half an hour ends the command
    left = [vars(plan) for plan in plans if plan.wanted]
    pool = {"compute": ray.data.ActorPoolStrategy(size=workers), "num_cpus": 1, "num_gpus": int(device == "cuda")}
    pool |= {"max_restarts": 3, "max_task_retries": 3}  # else a part that kills its worker would do so for ever
    scored = (
        ray.data.from_items(left, override_num_blocks=len(left))
        .map_batches(read_blocks, fn_kwargs={"size": size}, batch_size=1, num_cpus=0.5)
        .map_batches(Scorer, fn_constructor_kwargs={"shape": shape, "options": options}, batch_size=1, **pool)
    )
    for part in scored.iter_rows():
        yield part["rows"]


def start_ray(options: argparse.Namespace) -> tuple[str, int]:
    """Return the device, and how many workers there will be: by default as many as there is room for."""
    workers = options.workers
    if os.environ.get("RAY_ADDRESS"):
        device, *_ = connect(__package__, 1, 1, cores_beside=1)
        room = workers_of_cluster(device)
    else:
        room = room_here(models_of(options))
    if workers and workers > room:
        where = "the cluster" if os.environ.get("RAY_ADDRESS") else "this machine"
        raise ClusterError(f"--workers {workers}: {where} has room for {room}")
    if os.environ.get("RAY_ADDRESS"):
        return device, workers or room
    cores = None if torch.cuda.is_available() else min(room, torch.get_num_threads())
    machines = connect(__package__, 1, workers or cores, cores_beside=1)
    return machines.device, machines.workers_per_node


def room_here(models: list[str]) -> int:
    """Return for how many workers, each with all models, this machine has room: one per GPU, or one per core.

    Without a GPU no more than its free memory holds. Weights are loaded in fp32, which takes twice the size of a file
    in half precision; else as much again is left for what is computed.
    """
    if gpus := torch.cuda.device_count():
        return gpus
    files = [file for model in models if os.path.isdir(model) for file in Path(model).iterdir()]
    weights = sum(file.stat().st_size for file in files if file.suffix in (".safetensors", ".bin"))
    cores = os.cpu_count() or 1
    held = psutil.virtual_memory().available // (2 * weights) if weights else cores
    return max(1, min(cores, held))


def workers_of_cluster(device: str) -> int:
    """Return how many models the cluster has room for, beside the process that reads."""
    free = ray.available_resources()
    cores = int(free["CPU"]) - 1
    return min(cores, int(free["GPU"])) if device == "cuda" else cores


def list_bad_rows(plans: list[FilePlan], size: int, output: Path) -> Counter:
    """Write `_bad_rows.jsonl`: file, row (counted from 0) and reason; return how often each kind of reason is given."""
    lines, kinds = [], Counter()
    for plan in plans:
        for part, start in enumerate(range(0, plan.rows, size), plan.first):
            errors = pq.read_table(part_path(output, part), columns=[ERROR])[ERROR].to_pylist()
            for row, error in enumerate(errors, start):
                if error:
                    lines.append(json.dumps({"file": plan.file, "row": row, "reason": error}, ensure_ascii=False))
                    kinds[error.partition(" (found ")[0]] += 1
    write_text(output / "_bad_rows.jsonl", "".join(line + "\n" for line in lines))
    return kinds


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that scores rows: the model, and how it computes."""
    parser.add_argument(
        "--model", default="outputs/checkpoint", help="checkpoint folder or hub id; default: %(default)s"
    )
    parser.add_argument(
        "--workers", type=int, help="models at once; default: one per GPU, or per core as far as memory holds them"
    )
    parser.add_argument("--max-length", type=int, help="tokens; longer rows get no reward; default: the model's most")
    parser.add_argument("--max-tokens", type=int, help="tokens per batch; default: by the device")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16 rounds rewards")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.set_defaults(ensemble=[], pessimism=None)


def check_scoring(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options; raise `DataError` if a size is none."""
    if min(size for size in (options.max_tokens, options.workers, options.max_length, 1) if size is not None) < 1:
        raise DataError("--max-tokens, --workers and --max-length are at least 1")
    options.pessimism = check_pessimism(options.pessimism, options.ensemble)
    return options


def models_of(options: argparse.Namespace) -> list[str]:
    """Return all models that score."""
    return [options.model, *options.ensemble]


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rewards for all rows of Parquet files.")
    add_scoring(parser)
    parser.add_argument("--ensemble", nargs="+", default=[], help="more reward models; the reward is then of them all")
    parser.add_argument(
        "--pessimism",
        type=float,
        help="with --ensemble: the mean of the models' rewards, less so many of their standard deviations; default: 1",
    )
    parser.add_argument("--input", required=True, help="Parquet: a path, a folder, or a pattern in quotes")
    parser.add_argument("--output", required=True, type=Path, help="folder for the scored parts")
    return check_scoring(parser.parse_args())


def find_files(pattern: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the input files and the columns in them that hold what is to be scored.

    Raises:
        DataError: no file, or files of several kinds.
    """
    # a path that exists is meant as it is written, brackets and all
    found = expand_paths(pattern) if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
    files = sorted(map(os.path.abspath, found))
    if not files:
        raise DataError(f"--input {pattern}: no such file (looked in {Path.cwd()})")
    shapes = {shape_of(file): Path(file).name for file in files}
    if len(shapes) > 1:
        found = "; ".join(f"{name} has {' and '.join(shape)}" for shape, name in shapes.items())
        raise DataError(f"--input {pattern}: files of several kinds: {found}. Score each kind by itself.")
    return files, *shapes


def identity(options: argparse.Namespace, files: list[str]) -> dict:
    """What must be equal for a run to go on with what an earlier one left in its folder."""
    model, *others = map(model_digest, models_of(options))
    several = {"ensemble": others, "pessimism": options.pessimism} if others else {}
    known_files = [[Path(file).name, content_digest(Path(file))] for file in files]
    return {"max_length": options.max_length, "dtype": options.dtype, "model": model, "files": known_files} | several


def model_digest(model: str) -> str:
    """Return what names a model: its files', wherever they lie now, with tokenizer and chat template; or its hub id."""
    if os.path.isdir(model):
        return tails_digest(path for path in Path(model).iterdir() if path.suffix in MODEL_FILES)
    return model


def score_all(options: argparse.Namespace) -> None:
    """Score the rows of --input that are not scored yet, and say how many there are and which got no reward.

    Args:
        options: as `read_options` returns them; the paths and the length in them are completed.

    Raises:
        DataError: rows or a model that cannot be used, or another run's folder. CheckpointError: another run is at
            work in the folder. ClusterError: scoring failed.
    """
    files, shape = check_input(options)
    with claim_folder(options.output):
        check_same_run(options.output, identity(options, files))
        score_files(files, shape, options)


def check_input(options: argparse.Namespace) -> tuple[list[str], tuple[str, ...]]:
    """Return what `find_files` does; complete the paths and the length in the options."""
    files, shape = find_files(options.input)
    longest = min(load_reading(model, options.trust_remote_code).longest for model in models_of(options))
    options.max_length = min(longest, options.max_length or longest)
    options.output = options.output.absolute()
    # workers run elsewhere
    options.model, *options.ensemble = [
        os.path.abspath(model) if os.path.isdir(model) else model for model in models_of(options)
    ]
    return files, shape


def score_files(files: list[str], shape: tuple[str, ...], options: argparse.Namespace) -> None:
    """Score what is left, in a folder that is claimed and holds no other run; see `score_all`."""
    total = sum(pq.read_metadata(file).num_rows for file in files)
    size = part_size(total)
    plans = plan_parts(files, size, options.output)
    done = total - sum(plan.left(size) for plan in plans)
    print(f"{total} rows in {len(files)} files, {done} of them scored already")
    if done < total:
        try:
            score_left(plans, size, shape, options, done)
        except (ray.exceptions.RayError, torch.OutOfMemoryError, OSError) as error:
            advice = " Set --max-tokens lower." if isinstance(error, torch.OutOfMemoryError) else ""
            said = f"{error}\nScoring failed. Started again, the command scores what is left.{advice}"
            raise ClusterError(said) from error
        finally:
            disconnect()
    kinds = list_bad_rows(plans, size, options.output)
    print(f"{options.output}: {total} rows, {total - kinds.total()} of them with rewards")
    for kind, count in kinds.most_common():
        print(f"no reward, see _bad_rows.jsonl: {count} x {kind}")


def main() -> None:
    score_all(read_options())


if __name__ == "__main__":
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    try:
        main()
    except (DataError, ClusterError, CheckpointError) as error:
        raise SystemExit(f"score.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("\nscore.py: stopped; the same command scores what is left") from None
