"""Does a run fit on its GPUs? Answered before a model starts, from what `common.memory` counts.

    bash run_bt.sh plan=true             # a table for this machine's card, or for 24, 48 and 80 GB; nothing is started
    bash run_bt.sh plan=141              # for a card of 141 GB

A run goes through phases: weights are loaded, a step is made, with GRPO a server answers. Each phase is a list of parts
in bytes, and fits if their sum does. If one does not, settings are changed, the mildest first, until all fit. Two of
them change speed alone and can be left open (`auto`): layers are computed a second time in the backward pass if the
card is too small for their activations, and weights, gradients and optimizer are kept in host memory if it is too small
for these.
"""

import copy
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil
import ray
import torch
from omegaconf import DictConfig, OmegaConf
from ray.exceptions import RayTaskError

from common.cluster import ENVIRONMENT, ClusterError, Machines, can_compile
from common.conversation import DataError

if TYPE_CHECKING:
    from common.memory import Counted

GIB = 2**30
PRECISION = "bf16"  # that a plan counts with, if the settings name none: as on GPUs from Ampere on
# What torch reports of such cards: an L4 or A10G, an L40S, an A100 or H100
CARDS = {"24 GB": int(22.0 * GIB), "48 GB": int(44.4 * GIB), "80 GB": int(79.1 * GIB)}
USABLE = 0.92 * GIB  # assumed of each GB of other cards, as of the smallest of these
LEAST_CARD = 4  # GB
# Not counted, and so assumed: CUDA's context, cuBLAS and NCCL; and of the card, what the allocator cannot use
OUTSIDE, UNUSABLE = int(1.5 * GIB), 0.04
RANK = 16  # of the adapters that are proposed
GPUS, MOST_GPUS = "GPUs", 8
HOST = "host memory"
ON_CPU = {"VERL_PLATFORM": "cpu"}  # counting needs no GPU, and verl's engines must not look for one


@dataclass(frozen=True)
class Phase:
    """A stretch of the run, and what is on one GPU during it."""

    name: str
    parts: dict[str, float]  # bytes
    remedies: tuple[str, ...]  # names of settings in `Keys` that make it smaller, the mildest first
    host: float = 0  # bytes in host memory for each GPU
    fault: str = ""  # something in it that has too little room, whatever the sum
    note: str = ""
    share: float = 0  # of the card, with which an inference server would fit; 0 if there is none

    def sum(self, card: int) -> float:
        """Return the bytes that it takes, with what no counter sees."""
        return sum(self.parts.values()) + OUTSIDE + UNUSABLE * card

    def fits(self, card: int) -> bool:
        return not self.fault and self.sum(card) <= card


@dataclass(frozen=True)
class Keys:
    """What a method calls the settings that decide about memory."""

    checkpointing: str
    compiled: str
    offload: str
    tokens: str
    lora: str
    batched: str = ""  # tokens of a batch of answers
    share: str = ""  # of the card that an inference server takes
    split: str = ""  # over how many GPUs a server divides its weights


@dataclass(frozen=True)
class Method:
    """What a plan needs to know of a method.

    Args:
        engine_module, arguments: the module whose `step_to_count(config, workers, *arguments)` makes the step.
        phases: from what was counted, the settings, the number of GPUs and the bytes of the card.
        least_tokens: of a micro-batch, which must hold the largest row.
        packed: whether rows are packed; else layers are not compiled.
    """

    engine_module: str
    arguments: tuple
    phases: "Callable[[Counted, DictConfig, int, int], list[Phase]]"
    keys: Keys
    least_tokens: int
    packed: bool


def training_phases(counted: "Counted", offload: bool, beside: dict[str, float] | None = None) -> list[Phase]:
    """Return the phases that every method has.

    Args:
        offload: whether weights, gradients and optimizer are in host memory.
        beside: what else is on the card during a step.
    """
    on_card = 0 if offload else 1
    kept = {
        "weights, fp32": counted.weights,
        "gradients, fp32": counted.trained,
        "Adam's two averages, fp32": 2 * counted.trained,
    }
    from_host = offload * counted.layer  # a layer comes in fp32
    working = max(counted.step + from_host, on_card * counted.update)
    step = {name: on_card * size for name, size in kept.items()}
    step["whole weights, gathered by FSDP2"] = gathered = min(counted.gathered, working)
    step["activations, logits, their gradients"] = working - gathered
    host = (1 - on_card) * sum(kept.values())
    loading = {"weights, fp32": counted.weights, "the largest weight, whole": counted.largest}
    return [
        Phase("loading", loading, ("gpus",)),
        Phase("training", step | (beside or {}), ("checkpointing", "offload", "tokens", "lora", "gpus"), host),
    ]


def if_compiled(counted: "Counted", checkpointed: "Counted") -> "Counted":
    """Return what a step takes whose layers are compiled, from what it takes without and with checkpointing."""
    kept = max(0, counted.step - checkpointed.step)
    return replace(counted, step=checkpointed.step + int(counted.compiled * kept))


def of_loop(engine_module: str, rows: list, batch_size: int, packed: bool) -> Method:
    """Return what a plan needs to know of a method whose folder has the training loop.

    Args:
        engine_module: of the method.
        rows: for training, those that need the most memory first.
        batch_size: rows of a step.
    """
    keys = Keys(
        checkpointing="model.enable_gradient_checkpointing",
        compiled="engine.use_torch_compile",
        offload="engine.offload_policy",
        tokens="data.max_tokens_per_gpu",
        lora="model.lora_rank",
    )
    least = max(row.tokens if packed else row.padded_tokens for row in rows)

    def phases(counted: "Counted", config: DictConfig, workers: int, card: int) -> list[Phase]:
        return training_phases(counted, config.engine.offload_policy is True)

    return Method(engine_module, (rows[:batch_size], packed), phases, keys, least, packed)


class Plan:
    """The phases of a run, for any change of its settings.

    Args:
        config: the settings; `offload_policy` and `enable_gradient_checkpointing` may be "auto".
        workers: GPUs.
        count: `count_here`, or `count_in_cluster`.
        host: bytes of host memory that are free for each GPU, if that is known.
    """

    def __init__(self, method: Method, config: DictConfig, workers: int, count: Callable, host: int | None = None):
        self.method, self.config, self.workers, self.count, self.host = method, config, workers, count, host
        self.counted: dict[tuple, Counted] = {}
        self.known: dict[tuple, list[Phase]] = {}

    def phases(self, card: int, changes: dict[str, Any]) -> list[Phase]:
        """Return what the run takes on a card, in bytes, if some settings are changed."""
        if (asked := (card, frozenset(changes.items()))) not in self.known:
            self.known[asked] = self._phases(card, changes)
        return self.known[asked]

    def _phases(self, card: int, changes: dict[str, Any]) -> list[Phase]:
        workers = changes.get(GPUS, self.workers)
        config = with_changes(self.config, {key: value for key, value in changes.items() if key != GPUS})
        phases = self.method.phases(self._count(config, workers), config, workers, card)
        needed = max(phase.host for phase in phases)
        free = None if self.host is None else self.host * self.workers / workers  # more GPUs share the same memory
        if free is not None and needed > free:
            said = f"the host needs {needed / GIB:.0f} GiB of memory for each GPU, and has {free / GIB:.0f} free."
            phases.append(Phase(HOST, {}, ("checkpointing", "tokens", "lora", "gpus"), needed, fault=said))
        return phases

    def _count(self, config: DictConfig, workers: int) -> "Counted":
        keys = self.method.keys
        again, compiled, tokens, lora = (
            OmegaConf.select(config, key) for key in (keys.checkpointing, keys.compiled, keys.tokens, keys.lora)
        )
        if (counts_by := (workers, again, tokens, lora)) not in self.counted:
            self.counted[counts_by] = self.count(self.method.engine_module, config, workers, self.method.arguments)
        counted = self.counted[counts_by]
        if again or not compiled or not self.method.packed:
            return counted
        return if_compiled(counted, self._count(with_changes(config, {keys.checkpointing: True}), workers))

    def choose(self, card: int, changes: dict[str, Any] | None = None) -> dict[str, bool]:
        """Return what is decided about the settings that are left open: the fastest with which the run fits.

        If it fits with none, those that take the least of the card.

        Args:
            changes: of other settings.
        """
        open_keys, changes = left_open(self.method.keys, self.config), changes or {}
        for values in itertools.product((False, True), repeat=len(open_keys)):
            chosen = dict(zip(open_keys, values))
            phases = self.phases(card, changes | chosen) if open_keys else []
            if all(phase.fits(card) for phase in phases if "offload" in phase.remedies or phase.name == HOST):
                break
        return chosen

    def remedy(self, card: int) -> dict[str, Any] | None:
        """Return settings with which the run fits, besides what is chosen without asking; None if there are none."""
        changes = {}
        while tight := self._tight(card, changes):
            milder = next(self._milder(tight, changes), None)
            if milder is None:
                return None
            changes |= milder
        return self._without_needless(card, changes)

    def _without_needless(self, card: int, changes: dict[str, Any]) -> dict[str, Any]:
        """Return what is left of changes if those are taken back, as far as it goes, that later ones made needless."""
        for key in reversed(list(changes)):  # the one that costs the most first
            others = {other: value for other, value in changes.items() if other != key}
            if not self._tight(card, others):
                changes = others
        for key, value in changes.items():
            for milder in self._towards(key, value):
                if self._tight(card, changes | {key: milder}):
                    break
                changes = changes | {key: milder}
        return changes

    def _towards(self, key: str, value: Any) -> Iterator[int]:
        """Yield numbers from a changed one towards the run's own: doubled or halved, as `_milder` came to it."""
        keys = self.method.keys
        own = self.workers if key == GPUS else OmegaConf.select(self.config, key)
        while key in (keys.tokens, keys.batched) and 2 * value < own:
            yield (value := 2 * value)
        while key in (GPUS, keys.split) and value // 2 > own:
            yield (value := value // 2)

    def verdict(self, card: int) -> tuple[bool, str]:
        """Return whether the run fits, and what there is to say about it."""
        chosen = self.choose(card)
        if tight := self._tight(card, {}):
            tried = {key: value for key, value in chosen.items() if value and "offload" in tight.remedies}
            even = f", even with {as_settings(tried)}" if tried else ""
            return False, f"does not fit{even}: {self._describe(tight, card)} {self._propose(card)}"
        phases = self.phases(card, chosen)
        largest = max(phases, key=lambda phase: phase.sum(card))
        said = [f"fits, at most {largest.sum(card) / GIB:.1f} of {card / GIB:.1f} GiB ({largest.name})"]
        said += [phase.note for phase in phases if phase.note]
        if (again := chosen.get(self.method.keys.checkpointing)) is not None:
            said += [f"{self.method.keys.checkpointing}=auto is {again}: " + ("less memory" if again else "faster")]
        if chosen.get(self.method.keys.offload):
            host = max(phase.host for phase in phases) / GIB
            said += [
                f"the card is too small for weights, gradients and optimizer, so {self.method.keys.offload}=auto keeps "
                f"them in host memory, {host:.0f} GiB for each GPU; a step takes longer"
            ]
        return True, "; ".join(said)

    def _describe(self, phase: Phase, card: int) -> str:
        if phase.fault:
            return phase.fault
        largest = sorted(phase.parts.items(), key=lambda part: -part[1])[:3]
        gpus = "the GPU" if self.workers == 1 else f"each of {self.workers} GPUs"
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in largest)
        takes = f"{phase.name} takes {phase.sum(card) / GIB:.1f} GiB on {gpus}, and the card has {card / GIB:.1f}."
        return f"{takes} The largest parts: {parts}."

    def _propose(self, card: int) -> str:
        changes = self.remedy(card)
        if changes is None:
            return f"It fits on no {max(self.workers, MOST_GPUS)} such GPUs. Take a smaller model, or a larger machine."
        phases = self.phases(card, self.choose(card, changes) | changes)
        most, host = max(phase.sum(card) for phase in phases), max(phase.host for phase in phases)
        more = f", and {host / GIB:.0f} GiB of host memory for each GPU" if host else ""
        return f"It fits with {as_settings(changes)}: {most / GIB:.1f} GiB{more}."

    def _tight(self, card: int, changes: dict[str, Any]) -> Phase | None:
        """Return the first phase that does not fit, if some settings are changed and the open ones chosen."""
        phases = self.phases(card, self.choose(card, changes) | changes)
        return next((phase for phase in phases if not phase.fits(card)), None)

    def _milder(self, phase: Phase, changes: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield changes that make a phase smaller, the mildest first."""
        gpus = changes.get(GPUS, self.workers)
        for name in phase.remedies:
            key = GPUS if name == "gpus" else getattr(self.method.keys, name)
            now = gpus if key == GPUS else changes.get(key, OmegaConf.select(self.config, key))
            match name:
                case "checkpointing" | "offload":
                    better = True if now != "auto" else now  # what is open is chosen anyway
                case "tokens" | "batched":
                    better = now // 2 if now // 2 >= self.method.least_tokens else now
                case "lora":
                    better = now or RANK
                case "share":
                    better = phase.share or now
                case "split":
                    better = 2 * now if gpus % (2 * now) == 0 else now
                case "gpus":
                    better = min(2 * gpus, max(gpus, MOST_GPUS))
            if better != now:
                yield {key: better}


def left_open(keys: Keys, config: DictConfig) -> list[str]:
    """Return the settings that are "auto", the one that costs more time first."""
    return [key for key in (keys.offload, keys.checkpointing) if OmegaConf.select(config, key) == "auto"]


def as_settings(changes: dict[str, Any]) -> str:
    """Return changes as the user writes them behind the run script's name; the GPUs stand before it."""
    settings = " ".join(f"{key}={value}" for key, value in changes.items() if key != GPUS)
    gpus = f"{changes[GPUS]} GPUs (N_GPUS_PER_NODE times NNODES)" if GPUS in changes else ""
    return " and ".join(filter(None, (settings, gpus)))


def with_changes(config: DictConfig, changes: dict[str, Any]) -> DictConfig:
    """Return a copy of the settings with other values for some of them, by their dotted names."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return config


def count_here(engine_module: str, config: DictConfig, workers: int, arguments: tuple) -> "Counted":
    """Count in this process, which then can start no workers on GPUs."""
    os.environ.update(ENVIRONMENT | ON_CPU)  # before verl is imported
    warnings.filterwarnings("ignore", category=UserWarning)
    from common.memory import count_run

    return count_run(engine_module, config, workers, arguments)


def count_in_cluster(engine_module: str, config: DictConfig, workers: int, arguments: tuple) -> "Counted":
    """Count in a process of the cluster that sees no GPU."""
    from common.memory import count_run

    there = ray.remote(num_cpus=0, runtime_env={"env_vars": ON_CPU})(count_run)
    return ray.get(there.remote(engine_module, config, workers, arguments))


def settle(method: Method, config: DictConfig, workers: int, machines: Machines) -> None:
    """Decide what the settings leave open; refuse a run that cannot fit. Without GPUs nothing is refused.

    Args:
        machines: of `common.cluster.connect`.

    Raises:
        ClusterError: it does not fit.
    """
    if machines.card is not None and not machines.compiles:
        leave_eager(config, method.keys)
    on_cpu = {method.keys.offload: False, method.keys.checkpointing: True}
    chosen = {key: on_cpu[key] for key in left_open(method.keys, config)}
    if (card := machines.card) is not None:
        plan = Plan(method, config, workers, count_in_cluster, machines.host)
        try:
            fits, said = plan.verdict(card)
        except RayTaskError as error:
            print(f"GPU memory is not counted, so nothing is refused: {error.cause}", flush=True)
        else:
            if not fits:
                raise ClusterError(f"GPU memory: {said}")
            print(f"GPU memory: {said}", flush=True)
            chosen = plan.choose(card)
    for key, value in chosen.items():
        OmegaConf.update(config, key, value)


def leave_eager(config: DictConfig, keys: Keys) -> None:
    """Have no layers compiled, and say why."""
    if OmegaConf.select(config, keys.compiled):
        print(
            f"{keys.compiled}=True: the model's layers are not compiled, because there is no C compiler (gcc), or no "
            "header file of Python (python3-dev). The result is the same; steps are slower and take more memory.",
            flush=True,
        )
        OmegaConf.update(config, keys.compiled, False)


def is_asked(value: bool | int | str) -> bool:
    """Return whether `plan` asks for a plan; raise `DataError` if it is neither true nor false nor a card's size."""
    return value is not False and (value is True or bool(card_of(value)))


def card_of(value: int | str) -> dict[str, int]:
    """Return the bytes of a card of so many GB, by its name; raise `DataError` if that is no card's size."""
    size = str(value).strip().upper().removesuffix("GB").strip()
    if not size.isdecimal() or int(size) < LEAST_CARD:
        raise DataError(f"plan={value}: expected true, false, or the size of a card in GB, such as plan=24")
    name = f"{int(size)} GB"
    return {name: CARDS.get(name, int(int(size) * USABLE))}


def show(method: Method, config: DictConfig, nodes: int, per_node: int | None) -> None:
    """Print what a run takes on this machine's card, or on cards of usual sizes if it has none, or on the one named."""
    named = config.plan is not True
    found = [] if named else [torch.cuda.get_device_properties(each) for each in range(torch.cuda.device_count())]
    cards = {found[0].name: min(each.total_memory for each in found)} if found else CARDS
    if named:
        cards = card_of(config.plan)
    if found and not can_compile():
        leave_eager(config, method.keys)
    per_node = per_node or max(1, len(found))
    workers = nodes * per_node
    host = psutil.virtual_memory().available // per_node if found else None
    plan = Plan(method, config, workers, count_here, host)
    print("\n".join(["", *table(plan, cards)]), flush=True)


def table(plan: Plan, cards: dict[str, int]) -> list[str]:
    """Return the lines of a table in GiB: each phase with its parts, and for each card whether the run fits."""
    phases_of = {card: plan.phases(size, plan.choose(size)) for card, size in cards.items()}
    tokens = OmegaConf.select(plan.config, plan.method.keys.tokens)
    lines = [_line(f"GiB per GPU, of {plan.workers}; micro-batches up to {tokens} tokens", cards)]
    for of_cards in zip(*phases_of.values()):
        if of_cards[0].name == HOST:  # is said below
            continue
        sums = [phase.sum(size) for phase, size in zip(of_cards, cards.values())]
        lines += [_line(of_cards[0].name, sums)]
        names = {name: None for phase in of_cards for name in phase.parts}  # in order, each once
        lines += [_line(f"    {name}", [phase.parts.get(name, 0) for phase in of_cards]) for name in names]
    outside = [OUTSIDE + UNUSABLE * size for size in cards.values()]
    lines += [_line("in each sum: CUDA, NCCL, unusable rest (assumed)", outside), _line("the card has", cards.values())]
    return [*lines, "", *(f"{card}: {plan.verdict(size)[1]}" for card, size in cards.items())]


def _line(name: str, cells: Iterable[str | float]) -> str:
    def show(cell: str | float) -> str:
        return cell if isinstance(cell, str) else f"{cell / GIB:.{1 if cell >= GIB / 20 or not cell else 3}f}"

    return name.ljust(52) + "".join(f"{show(cell):>10}" for cell in cells)
