"""verl on a machine without an accelerator.

verl finds this package through the setuptools entry point group `verl.plugins` and imports it in every process,
Ray workers included. Importing it fills verl's platform registry; nothing of verl is patched. verl asks its own
platforms (CUDA, NPU, ROCm) first, so on a machine with an accelerator the registration is never used.
"""

from common.cpu import platform  # noqa: F401  (registers the platform)
