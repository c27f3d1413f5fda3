"""An exact tiny model behind the engine's interface (fake_forward.py), and runs of the scheduler over it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # so that tests here can import fake_forward and schedules
