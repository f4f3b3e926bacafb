"""How much memory a training step takes on each GPU, counted with tensors that have no data.

The method's own engine makes a step here, with FSDP2, autocast and checkpointing as they are, on torch's fake tensors:
these have a shape and no memory, so an 8B model takes seconds on any machine. A counter watches which tensors are
alive. What the engine does with its logits is counted because it does it; no formula must be kept up to date.

- This process is the first of all workers. Its process group is torch's "fake" one: a collective gives its result's
  shape, at once.
- Attention takes the way that it takes on a GPU. The rows of the batch are real, so that whatever depends on their
  lengths is as in training; everything computed from weights is fake.
- A model whose layers are all alike is counted with three and with four of them. At every moment of a step the bytes
  are a constant plus so many per layer, so the rest is arithmetic, and exact.
- Layers are counted as they are. Compiled ones keep less, and how much less is an estimate.
- The counter does not see CUDA's and NCCL's own memory, and what the allocator cannot use: see `common.plan`.
"""

import contextlib
import copy
import functools
import importlib
import io
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
import torch.nn as nn
from omegaconf import DictConfig
from tensordict import TensorDict
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from transformers import PreTrainedConfig, PreTrainedModel

from common import attention
from common.checkpoint import unwrap
from common.conversation import DataError
from common.logits import can_be_split
from common.packing import small_copy

FEW, MORE = 3, 4  # layers
# What compiled layers keep for the backward pass, of what they keep as they are; the rest is computed again, fast. It
# is 0.53 to 0.67 in families with RMSNorm, and 1 with LayerNorm (tests/benchmarks/compiled_memory.py)
COMPILED = 0.75
BACKWARD, GATHERED = "backward of layer ", ", gathered"
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


@dataclass(frozen=True)
class Step:
    """A training step of a method, as its workers make it."""

    engine_class: type  # of the method, see `common.fsdp`
    settings: dict  # what verl's engine is built of, see `common.training.verl_settings`
    loss: Callable  # called by the engine on each micro-batch
    batch: TensorDict  # that makes one micro-batch, the largest of the run
    workers: int


@dataclass(frozen=True)
class Counted:
    """What a step takes on one GPU, in bytes, were nothing kept in host memory."""

    weights: int  # this worker's share of the weights, in fp32
    trained: int  # of it, what is trained: gradients take as much, Adam's two averages twice as much
    layer: int  # this worker's share of one layer
    step: int  # at the worst moment of forward and backward, beside weights, gradients and optimizer
    gathered: int  # of it, whole weights that FSDP2 has gathered, in the precision of the computation
    update: int  # of the optimizer itself, while it updates the weights
    largest: int  # the largest weight, whole, in fp32
    parameters: int  # of the whole model, not bytes
    compiled: float = 1.0  # share of the activations that compiled layers keep, at most


class Counter(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most of them in each moment of a step.

    Args:
        fake: torch's fake mode, if the tensors have no data.
    """

    def __init__(self, fake: FakeTensorMode | None = None):
        super().__init__()
        self.modes = (None, fake)
        self.live = self.gathered = 0  # bytes, and of them FSDP2's whole weights
        self.moment, self.most = "", {}
        self._known = weakref.WeakKeyDictionary()  # what is counted of every storage alive

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # until it has become an operation on this worker's share
        if operation is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return args[0].dtype.is_floating_point or 1  # a loss or a norm as a number: finite, else of no interest
        result = operation(*args, **(kwargs or {}))
        if active_fake_mode() in self.modes:  # DTensor finds out the shapes of its results on fake tensors of its own
            self.see(result)
            self._note(self.live + _workspace(operation, args))
        return result

    def see(self, tensors) -> None:
        """Count the tensors of a tree from now until they are gone."""
        for tensor in tree_iter(tensors):
            if isinstance(tensor, torch.Tensor):
                self.look_at(tensor.untyped_storage())

    def look_at(self, storage: torch.UntypedStorage, resized: bool = False) -> None:
        """Count a storage as large as it is now; only FSDP2's storages for whole weights are ever resized."""
        if storage not in self._known:
            self._known[storage] = known = {"live": 0, "gathered": 0}
            weakref.finalize(storage, self._change, known)
        known = self._known[storage]
        self._change(known, storage.nbytes(), storage.nbytes() if resized or known["gathered"] else 0)

    def enter(self, moment: str) -> None:
        self.moment = moment
        self._note(self.live)

    def _change(self, known: dict[str, int], live: int = 0, gathered: int = 0) -> None:
        self.live += live - known["live"]
        self.gathered += gathered - known["gathered"]
        known.update(live=live, gathered=gathered)
        self._note(self.live)

    def _note(self, size: int) -> None:
        self.most[self.moment] = max((size, self.gathered), self.most.get(self.moment, (0, 0)))


def _workspace(operation, args: tuple) -> int:
    """Return the bytes that a kernel allocates inside itself."""
    if not operation.name().endswith("_varlen_attn_backward"):
        return 0
    _, query, key, *_ = args
    expanded = query.shape[1] != key.shape[1]  # each query head has its own gradient of the keys, before they are added
    return query.numel() * 4 + expanded * 2 * key.shape[0] * query.shape[1] * query.shape[2] * query.element_size()


@contextlib.contextmanager
def counting(counter: Counter) -> Iterator[None]:
    """Count what happens here. FSDP2 gathers and frees weights by resizing a storage, which no operation shows."""
    resize = torch.UntypedStorage.resize_

    def resize_and_count(storage: torch.UntypedStorage, size: int):
        resize(storage, size)
        counter.look_at(storage, resized=True)

    torch.UntypedStorage.resize_ = resize_and_count
    try:
        with counter:
            yield
    finally:
        torch.UntypedStorage.resize_ = resize


def count_run(engine_module: str, config: DictConfig, workers: int, arguments: tuple) -> Counted:
    """Count the step that a method's module makes of the settings."""
    return count(importlib.import_module(engine_module).step_to_count(config, workers, *arguments))


def count(step: Step) -> Counted:
    """Return what a step takes on the first of its GPUs.

    This process must have no process group, and verl's platform must be "cpu" (`VERL_PLATFORM`).

    Raises:
        DataError: the model does different things with different values, so that tensors without any do not do.
    """
    config = step.settings["model_config"].hf_config
    with (
        _process_group(step.workers),
        _kernels_of_a_gpu(step),
        torch.compiler.set_stance("force_eager"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            sizes = _count_all(step, config.get_text_config().num_hidden_layers)
        except NEEDS_VALUES as error:
            raise DataError(
                f"{config.architectures[0]}: what its layers do depends on values, as in a router ({error})"
            ) from error
    worst = max((name for name in sizes if name + GATHERED in sizes), key=sizes.get)
    named = {field.name: sizes.get(field.name) for field in fields(Counted)}
    keep_less = hasattr(config.get_text_config(), "rms_norm_eps") and sizes["trained"] == sizes["weights"]
    compiled = COMPILED if keep_less else 1.0  # with adapters it was not measured
    return Counted(**named | {"step": sizes[worst], "gathered": sizes[worst + GATHERED], "compiled": compiled})


def _count_all(step: Step, layers: int) -> dict[str, int]:
    """Return what `_count_with` does, for all layers."""
    if layers <= MORE or not _alike(step, layers):
        return _count_with(step, layers)
    few, more = (_first_and_last(_count_with(step, count), count) for count in (FEW, MORE))
    return {name: few[name] + (layers - FEW) * (more[name] - few[name]) for name in few}


def _first_and_last(sizes: dict[str, int], layers: int) -> dict[str, int]:
    """Leave out the layers between the first two and the last two: their sizes are between those, too."""
    places = {"first": 0, "second": 1, "last but one": layers - 2, "last": layers - 1}
    kept = {name: size for name, size in sizes.items() if not name.startswith(BACKWARD)}
    for name, index in places.items():
        kept |= {name + part: sizes[f"{BACKWARD}{index}{part}"] for part in ("", GATHERED)}
    return kept


def _count_with(step: Step, layers: int) -> dict[str, int]:
    """Return the fields of `Counted` for so many layers; `step` and `gathered` of each moment, by the moment's name."""
    model_config = copy.copy(step.settings["model_config"])
    model_config.hf_config = _shallow(model_config.hf_config, layers)
    fake, kept = FakeTensorMode(allow_non_fake_inputs=True), {}
    counter = Counter(fake)
    engine = _without_data(step.engine_class, fake)(**step.settings | {"model_config": model_config})
    engine._build_model_optimizer()
    weights = list(engine.module.parameters())
    layer, *_ = parts = _layers(unwrap(engine.module))
    counter.see([weight.to_local() for weight in weights] + list(engine.module.buffers()))
    held = counter.live

    def loss_function(*arguments, **named):
        with unset_fake_temporarily():
            return step.loss(*arguments, **named)

    def enter(moment: str) -> None:
        kept[moment] = _size(weight.grad for weight in weights if weight.grad is not None)
        counter.enter(moment)

    with counting(counter):
        _announce(parts, enter)
        with engine.train_mode():
            enter("first layer")
            with fake:
                loss, _ = engine.forward_step(_micro_batch(step), loss_function, forward_only=False)
                loss.backward()
                del loss
            enter("update")
            engine.optimizer_step()
    update = counter.most["update"][0] - held - kept.pop("update")
    moments = {moment: counter.most[moment][0] - held - kept[moment] for moment in kept}
    moments |= {moment + GATHERED: counter.most[moment][1] for moment in kept}
    trained = _size(weight for weight in weights if weight.requires_grad)
    return moments | {
        "update": update - 2 * trained,  # without Adam's averages, which the first update makes
        "weights": _size(weights),
        "trained": trained,
        "layer": _size(layer.parameters()),
        "largest": 4 * max(weight.numel() for weight in weights),
        "parameters": sum(weight.numel() for weight in weights),
    }


def _micro_batch(step: Step) -> TensorDict:
    """Return the batch as the engine's own loop would hand it over: one micro-batch, and what the loss divides by."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.utils import prepare_micro_batches

    with unset_fake_temporarily():
        (micro_batch,), _ = prepare_micro_batches(step.batch.clone())
        tokens = float(step.batch["loss_mask"].sum())
    tu.assign_non_tensor(micro_batch, dp_size=step.workers, batch_num_tokens=tokens)
    return micro_batch


def _size(weights: Iterable[DTensor]) -> int:
    """Return the bytes of this worker's shares."""
    return sum(weight.to_local().nbytes for weight in weights)


def _announce(layers: list[nn.Module], enter: Callable[[str], None]) -> None:
    """Call `enter` at the moments of a step between which the bytes grow evenly with the number of layers.

    A gradient arrives at what a layer puts out when the backward of that layer begins.
    """

    names = {0: "layers", len(layers) - 1: "head and loss"}

    def after(layer, inputs, output, index: int) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # computed once more, for its own backward
        if index in names:
            enter(names[index])
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        hidden.register_hook(lambda gradient: enter(f"{BACKWARD}{index}"))

    for index, layer in enumerate(layers):
        layer.register_forward_hook(functools.partial(after, index=index))


def _without_data(engine_class: type, fake: FakeTensorMode) -> type:
    """Return the method's engine with weights that have no data, for a batch that has."""

    class WithoutData(engine_class):
        def _load_weights(self, config: PreTrainedConfig, options: dict) -> PreTrainedModel:
            with torch.device("meta"):
                return self.auto_class.from_config(config, **options)

        def _spread_weights(self, module: nn.Module, *arguments) -> None:
            with fake:
                module.to_empty(device="cpu")

        def _can_be_split(self, module: PreTrainedModel) -> bool:
            copied = small_copy(module.config, engine_class.auto_class)  # it takes values to find this out
            return copied is None or can_be_split(copied)

        def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict, dict]:
            with unset_fake_temporarily():
                inputs, rest = super().prepare_model_inputs(micro_batch)
            return tree_map_only(torch.Tensor, fake.from_tensor, inputs), rest

        def prepare_model_outputs(self, *arguments, **named) -> dict:
            with unset_fake_temporarily():
                return super().prepare_model_outputs(*arguments, **named)

    return WithoutData


def _alike(step: Step, layers: int) -> bool:
    """Whether all layers of the model have the same weights and are of one kind."""
    config = step.settings["model_config"].hf_config
    if len(set(getattr(config.get_text_config(), "layer_types", None) or [0])) > 1:
        return False
    with torch.device("meta"):
        parts = _layers(step.engine_class.auto_class.from_config(config, attn_implementation="eager"))
    kinds = {tuple((name, weight.shape) for name, weight in part.named_parameters()) for part in parts}
    return len(parts) == layers and len(kinds) == 1


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the parts that FSDP2 shards one by one; sharding puts four letters before their class's name."""
    names = set(model._no_split_modules or ())
    return [part for part in model.modules() if type(part).__name__.removeprefix("FSDP") in names]


def _shallow(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """Return the config of the same model with fewer layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return config


@contextlib.contextmanager
def _process_group(workers: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=workers)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _kernels_of_a_gpu(step: Step) -> Iterator[None]:
    """Attend as on a GPU: in half precision by the flash kernel."""
    if step.settings["engine_config"].mixed_precision["param_dtype"] in ("fp32", "float32"):
        yield
        return
    per_segment, attention._attend_per_segment = attention._attend_per_segment, attention._attend_with_flash
    try:
        yield
    finally:
        attention._attend_per_segment = per_segment
