"""Measurements against what a user could pick instead; not part of the distribution."""

import sys
from typing import Any

# OpenVINO and NNCF send usage data, from `import openvino` on, unless this package cannot be imported.
_modules: dict[str, Any] = sys.modules
_modules.setdefault("openvino_telemetry", None)
