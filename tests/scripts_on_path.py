"""Scripts as modules; not by their folder on sys.path, where scripts/evaluate.py would hide a package of that name."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


SCRIPTS = Path(__file__).parents[1] / "scripts"


def load_script(name: str) -> ModuleType:
    """`scripts/NAME.py`, or the package `scripts/NAME`, under the name by which scripts import it."""
    if name not in sys.modules:
        package = SCRIPTS / name / "__init__.py"
        spec = importlib.util.spec_from_file_location(name, package if package.is_file() else SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
