"""The commands people type: `python -m launch.train`, `launch.evaluate`, `launch.describe`, ..."""
