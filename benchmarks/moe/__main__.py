"""`python -m benchmarks.moe`."""

import sys

from benchmarks.moe import main

sys.exit(main())
