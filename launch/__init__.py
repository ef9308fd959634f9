"""The commands people type: `vitattn-moe train`, `evaluate`, ... where the package is installed,
`python -m launch.train`, `launch.evaluate`, ... in a checkout.
"""
# A package of vitattn-moe.

import sys

import vitattn_moe

if sys.argv[:1] == ["-m"]:  # Python looks for the module that `python -m launch.train` names
    vitattn_moe.refuse_foreign_packages()
else:
    vitattn_moe.check_packages()
