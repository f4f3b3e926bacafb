"""What the method folders share: Parquet IO, cluster set-up, packed attention, checkpoints, reports, the demo world."""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

# A local Ray should listen on loopback only. Ray turns an address of 127.0.0.1 into the machine's public one unless
# this is off, and reads it when it is imported, so it is set here, before any module of ours imports Ray.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


class _WithoutSklearn(MetaPathFinder):
    """Keeps transformers from importing scikit-learn, with scipy and pandas: two seconds of every process with a model.

    One module of transformers wants one function of it, to tune assisted generation, which nobody uses here. That
    module is told that scikit-learn is not there, so in these processes such tuning is left out. All others find it.
    """

    def find_spec(self, name, path=None, target=None) -> ModuleSpec | None:
        if name != "transformers.generation.candidate_generator":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module) -> None:
        from transformers import utils

        there, utils.is_sklearn_available = utils.is_sklearn_available, lambda: False
        try:
            super().exec_module(module)
        finally:
            utils.is_sklearn_available = there


sys.meta_path.insert(0, _WithoutSklearn())
