"""Score any number of rows with a trained reward model: Parquet in, the same rows with their rewards out.

    python score.py --model outputs/checkpoint --input 'rows/*.parquet' --output scored
    RAY_ADDRESS=head:6379 python score.py …         # the same on a cluster, all paths in a shared folder

Ray Data reads the files in parts, a pool of model actors scores them, and every part appears whole, as
`scored/part-000000.parquet`: all columns kept, the rewards beside them. Started again after a crash, the command scores
what is left, and every row is there exactly once, in its order. Texts are batched by how they start, a prompt that
several responses share being computed once, and else by length, so that hardly anything is padding. A row that cannot
be scored keeps its place, without a reward, and is listed with the reason in `scored/_bad_rows.jsonl`.
"""

import argparse
import glob
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import transformers
from tqdm import tqdm

from common.checkpoint import CheckpointError, claim_folder
from common.cluster import ClusterError, check_shared_folder, connect, disconnect
from common.conversation import BadRow, Conversation, read_conversation
from common.files import content_digest, tails_digest, write_text
from common.labelled import read_candidates, read_dialogue, read_response
from common.parquet import DataError, column_names
from common.parts import FilePlan, check_same_run, part_path, part_size, plan_parts, read_parts, write_part
from common.reward_model import encode, load_reward_model, load_reward_tokenizer, score

# what a row may hold, and the columns of its rewards; "rewards" is a list, one for each response
SHAPES = {
    ("chosen", "rejected"): ("chosen_reward", "rejected_reward"),
    ("messages",): ("reward",),
    ("query", "response"): ("reward",),
    ("input", "output"): ("rewards",),
}
ERROR = "reward_error"
MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py")


def shape_of(file: str) -> tuple[str, ...]:
    """Return which columns of a file hold what is to be scored; raise `DataError` where none do."""
    names = column_names(Path(file))
    shape = next((shape for shape in SHAPES if set(shape) <= set(names)), None)
    if shape is None:
        expected = ", or ".join(" and ".join(shape) for shape in SHAPES)
        raise DataError(f"{file}: expected the columns {expected}; found {', '.join(names)}. Rename them.")
    if taken := {*SHAPES[shape], ERROR} & set(names):
        raise DataError(f"{file}: there is a column {', '.join(sorted(taken))} already, which scoring adds. Rename it.")
    return shape


def read_texts(row: dict, shape: tuple[str, ...]) -> list[Conversation | str]:
    """Return the whole conversations, or plain texts, that a row wants rewards for; raise `BadRow` if it holds none."""
    if shape == ("input", "output"):
        dialogue, responses = read_candidates(row, least=1)
    elif shape == ("query", "response"):
        dialogue, responses = read_dialogue(row["query"], "query"), [read_response(row["response"])]
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
    """An actor with a model of its own, which scores parts and writes them."""

    def __init__(self, shape: tuple[str, ...], options: argparse.Namespace):
        transformers.utils.logging.disable_progress_bar()
        self.shape, self.options = shape, options
        self.model, self.tokenizer = load_reward_model(
            options.model, True, getattr(torch, options.dtype), options.trust_remote_code
        )

    def __call__(self, batch: dict) -> dict:
        (number,), (stream,) = batch["part"], batch["rows"]
        table = self.score_part(pa.ipc.open_stream(stream).read_all())
        write_part(self.options.output, int(number), table)
        return {"rows": [table.num_rows]}

    def score_part(self, table: pa.Table) -> pa.Table:
        """Return rows with their rewards, and with the reason where there is none."""
        encoded, errors = [], []
        for row in table.select(self.shape).to_pylist():
            try:
                texts = read_texts(row, self.shape)
                limit = self.options.max_length
                encoded.append([encode(text, self.tokenizer, limit, self.shape[-1]) for text in texts])
                errors.append(None)
            except BadRow as fault:
                encoded.append([])
                errors.append(f"column '{fault.column}': {fault.kind}{fault.found}")
        flat = [sequence for sequences in encoded for sequence in sequences]
        rewards = iter(score(self.model, flat, self.options.max_tokens).tolist())
        found = [[next(rewards) for _ in sequences] or None for sequences in encoded]
        for row, given in enumerate(found):
            if given and not all(map(math.isfinite, given)):
                found[row], errors[row] = None, f"the model gives no finite reward (found {given})"
        for place, name in enumerate(SHAPES[self.shape]):
            if name == "rewards":
                values = pa.array(found, pa.list_(pa.float32()))
            else:
                values = pa.array([given and given[place] for given in found], pa.float32())
            table = table.append_column(name, values)
        return table.append_column(ERROR, pa.array(errors, pa.string()))


def score_parts(
    plans: list[FilePlan], size: int, shape: tuple[str, ...], options: argparse.Namespace, done: int
) -> None:
    """Have a pool of actors score what is left, with a progress bar over all rows."""
    device, workers = start_ray(options.workers)
    check_shared_folder(options.output, nodes=1)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a part is a block, so that it goes to whichever actor is free
    left = [vars(plan) for plan in plans if plan.wanted]
    pool = {"compute": ray.data.ActorPoolStrategy(size=workers), "num_cpus": 1, "num_gpus": int(device == "cuda")}
    pool |= {"max_restarts": 3, "max_task_retries": 3}  # a part that kills its worker would else do so for ever
    scored = (
        ray.data.from_items(left, override_num_blocks=len(left))
        .map_batches(read_blocks, fn_kwargs={"size": size}, batch_size=1, num_cpus=0.5)
        .map_batches(Scorer, fn_constructor_kwargs={"shape": shape, "options": options}, batch_size=1, **pool)
    )
    with tqdm(total=sum(plan.rows for plan in plans), initial=done, desc="score", unit="row") as progress:
        for part in scored.iter_rows():
            progress.update(part["rows"])


def start_ray(workers: int | None) -> tuple[str, int]:
    """Return the device, and how many models there will be: by default one per GPU, or per core where there is none."""
    if os.environ.get("RAY_ADDRESS"):
        device, _ = connect(Path(__file__).parent, 1, 1, cores_beside=1)
        free = ray.available_resources()
        there = int(free["CPU"]) - 1  # for what reads
        there = min(there, int(free["GPU"])) if device == "cuda" else there
        if workers and workers > there:
            raise ClusterError(f"--workers {workers}: the cluster has room for {there}")
        return device, workers or there
    there = torch.cuda.device_count() or os.cpu_count()
    if workers and workers > there:
        raise ClusterError(f"--workers {workers}: this machine has room for {there}")
    cores = None if torch.cuda.is_available() else torch.get_num_threads()
    return connect(Path(__file__).parent, 1, workers or cores, cores_beside=1)


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


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rewards for all rows of Parquet files.")
    parser.add_argument(
        "--model", default="outputs/checkpoint", help="checkpoint folder or hub id; default: %(default)s"
    )
    parser.add_argument("--input", required=True, help="Parquet: a path, a folder, or a pattern in quotes")
    parser.add_argument("--output", required=True, type=Path, help="folder for the scored parts")
    parser.add_argument("--workers", type=int, help="models at once; default: one per GPU, or one per core")
    parser.add_argument("--max-length", type=int, help="tokens; longer rows get no reward; default: the model's most")
    parser.add_argument("--max-tokens", type=int, help="tokens per batch; default: by the device")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16 rounds rewards")
    parser.add_argument("--trust-remote-code", action="store_true")
    options = parser.parse_args()
    if min(size for size in (options.max_tokens, options.workers, options.max_length, 1) if size is not None) < 1:
        raise DataError("--max-tokens, --workers and --max-length are at least 1")
    return options


def main() -> None:
    options = read_options()
    pattern = f"{options.input}/*.parquet" if os.path.isdir(options.input) else options.input
    files = sorted(map(os.path.abspath, glob.glob(pattern, recursive=True)))
    if not files:
        raise DataError(f"--input {options.input}: no such file (looked in {Path.cwd()})")
    shapes = {shape_of(file): Path(file).name for file in files}
    if len(shapes) > 1:
        found = "; ".join(f"{name} has {' and '.join(shape)}" for shape, name in shapes.items())
        raise DataError(f"--input {options.input}: files of several kinds: {found}. Score each kind by itself.")
    _, longest = load_reward_tokenizer(options.model, options.trust_remote_code)
    options.max_length = min(longest, options.max_length or longest)
    options.output = options.output.absolute()
    local = os.path.isdir(options.model)
    options.model = os.path.abspath(options.model) if local else options.model
    with claim_folder(options.output):
        run = {"max_length": options.max_length, "dtype": options.dtype}
        run["model"] = options.model
        if local:  # wherever it lies now, with its tokenizer and chat template
            run["model"] = tails_digest(path for path in Path(options.model).iterdir() if path.suffix in MODEL_FILES)
        run["files"] = [[Path(file).name, content_digest(Path(file))] for file in files]
        check_same_run(options.output, run)
        total = sum(pq.read_metadata(file).num_rows for file in files)
        size, (shape,) = part_size(total), shapes
        plans = plan_parts(files, size, options.output)
        done = total - sum(plan.left(size) for plan in plans)
        print(f"{total} rows in {len(files)} files, {done} of them scored already")
        if done < total:
            try:
                score_parts(plans, size, shape, options, done)
            except ray.exceptions.RayError as error:
                raise ClusterError(
                    f"{error}\nA worker failed. Started again, the command scores what is left."
                ) from error
            finally:
                disconnect()
        kinds = list_bad_rows(plans, size, options.output)
    print(f"{options.output}: {total} rows, {total - kinds.total()} of them with rewards")
    for kind, count in kinds.most_common():
        print(f"no reward, see _bad_rows.jsonl: {count} x {kind}")


if __name__ == "__main__":
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    try:
        main()
    except (DataError, ClusterError, CheckpointError) as error:
        raise SystemExit(f"score.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("\nscore.py: stopped; the same command scores what is left") from None
