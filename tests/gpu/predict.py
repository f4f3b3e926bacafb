"""Part of gpu_check.py: the memory of each step that speed.py measures, counted on tensors without data."""

from shared import cases, name_of, note, step_of

from common.memory import count

GIB = 2**30

for method, model, lora, lengths in cases():
    for tokens in lengths:
        step, _ = step_of(method, model, tokens, lora)
        counted = count(step)
        most = counted.weights + 3 * counted.trained + max(counted.step, counted.update)
        note(**{"case": name_of(method, model, lora, tokens), "predicted GiB": most / GIB})
