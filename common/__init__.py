"""What the method folders share: Parquet IO, cluster set-up, packed attention, checkpoints, reports, the demo world."""

import os

# A local Ray should listen on loopback only. Ray turns an address of 127.0.0.1 into the machine's public one unless
# this is off, and reads it when it is imported, so it is set here, before any module of ours imports Ray.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
