"""Eight simulated CPU devices for every test, set before JAX starts; tests build smaller meshes
from them.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEVICES_FLAG = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

os.environ["JAX_PLATFORMS"] = "cpu"
if DEVICES_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES_FLAG}".strip()
sys.path.insert(0, str(ROOT))
