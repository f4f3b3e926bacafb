"""What the method folders share: Parquet IO, cluster set-up, packed attention, checkpoints, reports, the demo world."""

import os
import sys
from importlib.abc import MetaPathFinder

# A local Ray should listen on loopback only. Ray turns an address of 127.0.0.1 into the machine's public one unless
# this is off, and reads it when it is imported, so it is set here, before any module of ours imports Ray.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


class _WithoutSklearn(MetaPathFinder):
    """Keeps transformers from importing scikit-learn, with scipy and pandas: two seconds of every process with a model.

    transformers wants one function of it, to tune assisted generation, which nobody uses here. It asks whether
    scikit-learn is there when it imports that module, and is told then that it is not. The module is found as ever.
    """

    def find_spec(self, name, path=None, target=None) -> None:
        if name == "transformers.generation.candidate_generator":
            import transformers.utils

            transformers.utils.is_sklearn_available = lambda: False


sys.meta_path.insert(0, _WithoutSklearn())
