"""vLLM's worker on a CPU, for verl: it keeps its weights as they are, so that new ones can be loaded into them.

At first use vLLM packs the weight of every linear layer into a form of oneDNN's own, and leaves an empty weight behind.
verl then has nothing to load the next weights into. Without oneDNN a layer is torch's own: somewhat slower, and the
same numbers. Imported by vLLM's worker process alone.
"""

import vllm._custom_ops as ops
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

assert hasattr(ops, "_supports_onednn"), "vLLM has another switch for oneDNN now"  # as of vLLM 0.24 and 0.28
ops._supports_onednn = False


class KeepsWeights(vLLMColocateWorkerExtension):
    """verl's extension of vLLM's worker, under a name of this module: loading it runs the lines above."""
