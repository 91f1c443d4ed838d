"""The YAML tables that ship with the cost model."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

#: libyaml reads a table ten times faster; it is not in every build of PyYAML, and both are safe.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def read_table(name: str) -> Any:
    """The contents of a table beside this file; read once, so it is not to be changed."""
    return yaml.load(Path(__file__).with_name(name).read_text(encoding="utf-8"), _LOADER)
