"""Part of gpu_check.py: the memory of each step that speed.py measures, counted on tensors without data."""

from shared import cases, name_of, note, step_of

from common.memory import count
from common.plan import if_compiled

GIB = 2**30

for method, model, lora, checkpointing, lengths in cases():
    for tokens in lengths:
        step, _ = step_of(method, model, tokens, lora, checkpointing)
        counted = count(step)
        if not checkpointing:
            counted = if_compiled(counted, count(step_of(method, model, tokens, lora)[0]))
        most = counted.weights + 3 * counted.trained + max(counted.step, counted.update)
        note(**{"case": name_of(method, model, lora, checkpointing, tokens), "predicted GiB": most / GIB})
