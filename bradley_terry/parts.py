"""Work on many rows that survives a crash: Parquet files cut into numbered parts, each done wholly or not at all.

Parts are numbered in the order of files and rows, whatever the files' own row groups are, so which files are in the
output folder says what is done. Nothing else is kept: no list that could disagree with the folder. (Ray Data's own
checkpoints want a unique id in every row, and keep no order.)
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.conversation import DataError
from common.files import write_text, written_whole


@dataclass(frozen=True)
class FilePlan:
    """One input file: how many rows, the number of its first part, and the numbers of those that are not done."""

    file: str
    rows: int
    first: int
    wanted: tuple[int, ...]

    def left(self, size: int) -> int:
        """Return how many rows are not done, of parts of `size` rows."""
        return sum(min(size, self.rows - (part - self.first) * size) for part in self.wanted)


def part_path(output: Path, number: int) -> Path:
    """Return where a part goes: names in the order of the rows."""
    return output / f"part-{number:06d}.parquet"


def part_size(rows: int) -> int:
    """Return how many rows make a part: a crash costs the parts in work, a pool of workers wants more than one each."""
    return min(5000, max(100, rows // 32))


def plan_parts(files: list[str], size: int, output: Path) -> list[FilePlan]:
    """Return what is to be done: parts of `size` rows each, the last of a file with what is left."""
    plans, first = [], 0
    for file in files:
        rows = pq.read_metadata(file).num_rows
        parts = range(first, first + -(-rows // size))
        sizes = [min(size, rows - start) for start in range(0, rows, size)]
        wanted = tuple(part for part, whole in zip(parts, sizes) if rows_in(part_path(output, part)) != whole)
        plans.append(FilePlan(file, rows, first, wanted))
        first = parts.stop
    return plans


def rows_in(part: Path) -> int | None:
    """Return how many rows a part holds; None if it is not there, or was never written to its end."""
    try:
        return pq.read_metadata(part).num_rows
    except (OSError, pa.ArrowInvalid):
        return None


def check_same_run(output: Path, run: dict) -> None:
    """Note down what the run in a folder is, and delete what a killed one had begun.

    Raises:
        DataError: the folder holds another run, or other files.
    """
    note = output / "_run.json"
    if not note.exists() and (parts := sorted(output.glob("*.parquet"))):
        raise DataError(f"{output} holds {parts[0].name}, which this command did not write. Choose another --output.")
    earlier = json.loads(note.read_text(encoding="utf-8")) if note.exists() else run
    if changed := [_difference(name, earlier.get(name), run[name]) for name in run if earlier.get(name) != run[name]]:
        raise DataError(f"{output} holds another run, different in {'; '.join(changed)}. Choose another --output.")
    write_text(note, json.dumps(run, indent=1))
    for begun in output.glob(".part-*.partial"):
        begun.unlink()


def _difference(name: str, there: object, here: object) -> str:
    """Say what differs; of lists, what is in one of them alone."""
    if isinstance(there, list) and isinstance(here, list):
        there, here = [entry for entry in there if entry not in here], [entry for entry in here if entry not in there]
        if not there and not here:
            return f"{name}: in another order"
    return f"{name}: {there} there, {here} here"


def read_parts(plan: FilePlan, size: int) -> Iterator[tuple[int, pa.Table]]:
    """Yield the wanted parts of a file, number and rows, reading the file once."""
    wanted = set(plan.wanted)
    for number, table in enumerate(cut(pq.ParquetFile(plan.file).iter_batches(size), size), plan.first):
        if number in wanted:
            yield number, table


def cut(batches: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Yield tables of exactly `size` rows, the last with what is left, whatever sizes come in.

    pyarrow's own batches are smaller where a row group ends and a column has a dictionary.
    """
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        while sum(part.num_rows for part in held) >= size:
            table = pa.Table.from_batches(held)
            yield table.slice(0, size)
            held = table.slice(size).to_batches()
    if held:
        yield pa.Table.from_batches(held)


def write_part(output: Path, number: int, table: pa.Table) -> None:
    """Write a part, whole or not at all."""
    with written_whole(part_path(output, number)) as partial:
        pq.write_table(table, partial)
