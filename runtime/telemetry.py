"""Turn the telemetry of ONNX Runtime off, unless the user has set ORT_DISABLE_TELEMETRY.

The official builds write a device identifier and a database into the home folder and send events to
Microsoft, from the import on (Privacy.md in the package). They read the variable when they are imported, so
this package has to be imported before; `import runtime` does not import ONNX Runtime.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "ORT_DISABLE_TELEMETRY"
_not_set = not os.environ.get(VARIABLE)  # an explicit 0 stays
TOO_LATE = _not_set and sys.modules.get("onnxruntime") is not None
if _not_set:
    os.environ[VARIABLE] = "1"  # of this process and of those that it starts
