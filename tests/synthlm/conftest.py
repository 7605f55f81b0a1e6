"""Makes ``fake_jobs`` importable, here and in the worker processes that tests start."""

import os
import sys
from pathlib import Path

TESTS = str(Path(__file__).parents[1])

if TESTS not in sys.path:
    sys.path.insert(0, TESTS)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH", "")]))
