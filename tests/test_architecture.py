"""Rules that hold across the code: who imports whom, how long things get, what prints."""

import ast
import re
import subprocess
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_mt"

# what a sentence passes through, in order; a module imports only from its own stage and from those above
_STAGES = """
arguments: key_rules errors settings arguments trainer_keys search_limits process_group command_line experiment \
run_folder text_files
corpora: cldr pair_files corpora
tokenization: tokenization pretrained
data: batching data data_table pair_stream streaming load_data
model: model
translation: hardware search generation loading sentences hypotheses translation
large translations: translation_output translation_input shards translator_options ray_job
training: models losses optimizer sharding averaging tracking progress interruption checkpoints non_finite
training+: early_stopping evaluation_loop checkpointing training dry_run
evaluation: environment scores metric slices significance scoring comet evaluation results
pictures: attention verdict figures
reporting: tables markdown page run_record report_scores report
hub: seeds model_card hub summary
comparison: trials ablation padded_counting four_settings encoding_comparison encoding_pictures scaling step_time
"""
STAGES = dict(line.split(":") for line in _STAGES.strip().splitlines())
STAGE_OF = {module: number for number, stage in enumerate(STAGES.values()) for module in stage.split()}
EXCEPTIONS = {("experiment", "model")}  # keys of the architecture are the fields of its configuration
LINES = {"modeling_hf_mt.py": 600}  # the one file that a reader of the model has to have in front of him whole
PRINTERS = {"command_line.py": {"run_script", "_end"}, "experiment.py": {"parse_experiment"}}  # errors, and --help
TOP_LEVEL = {"pyproject.toml", "hf_mt", "configs", "scripts", "tests", "model_cards"}
TOP_LEVEL |= {"README.md", "LICENSE", "Makefile", ".ci", ".gitignore", ".git"}

COMPARISON = re.compile(r"position_encoding[\"'\])]*\s*(==|!=|(not\s+)?in\s*[(\[{])|match\s+[\w.]*position_encoding\b")

sources = sorted([*PACKAGE.glob("**/*.py"), *ROOT.glob("scripts/**/*.py")])
modules = sorted(path for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
travelling = sorted((PACKAGE / "model").glob("*.py"))


def every(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def imports(source: str) -> Iterator[tuple[int, str]]:
    """All imports of a file as (leading dots, dotted name), those within functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((0, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            # `from hf_mt import data` names a module only in what is imported
            names = [f"{base}.{name.name}" for name in node.names] if base in ("", "hf_mt") else [base]
            yield from ((node.level, name) for name in names)


def imported_modules(source: str) -> set[str]:
    """Modules of this package, by their names in `STAGES`."""
    parts = [name.split(".") for _, name in imports(source)]
    return {names[1] for names in parts if names[0] == "hf_mt" and len(names) > 1}


def forbidden_imports(module: str, source: str) -> set[str]:
    """What a module imports from a later stage."""
    later = {name for name in imported_modules(source) if STAGE_OF.get(name, -1) > STAGE_OF[module]}
    return {name for name in later if (module, name) not in EXCEPTIONS}


def far_imports(source: str) -> set[str]:
    """Imports with which a file can't travel: of this package, or relative but not `from .sibling import name`."""
    relative = {"." * level + name for level, name in imports(source) if level and (level > 1 or "." in name)}
    return relative | {name for level, name in imports(source) if not level and name.split(".")[0] == "hf_mt"}


def prints(source: str, allowed: set[str]) -> list[int]:
    """Lines that call print outside the functions of these names."""
    tree = ast.parse(source)
    inside = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in allowed]
    exempt = {id(call) for function in inside for call in ast.walk(function)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in exempt]
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def long_functions(source: str, limit: int) -> dict[str, int]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    lengths = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions}
    return {name: length for name, length in lengths.items() if length > limit}


def test_every_module_has_its_stage() -> None:
    assert {path.stem for path in modules} <= STAGE_OF.keys()


@every(modules)
def test_modules_import_nothing_from_later_stages(path: Path) -> None:
    assert forbidden_imports(path.stem, path.read_text(encoding="utf-8")) == set()


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {path.stem: imported_modules(path.read_text(encoding="utf-8")) for path in modules}
    assert set(TopologicalSorter(graph).static_order()) >= {path.stem for path in modules}
    with pytest.raises(CycleError):
        TopologicalSorter(graph | {"settings": {"hub"}}).prepare()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from hf_mt.hub import push", {"hub"}),
        ("import hf_mt.report", {"report"}),
        ("from hf_mt import training", {"training"}),
        ("def later():\n    from hf_mt.hub import push", {"hub"}),
        ("from hf_mt.errors import InputError", set()),
        ("from hf_mt.model.configuration_hf_mt import HfMtConfig", {"model"}),
    ],
)
def test_an_import_from_a_later_stage_would_be_found(line: str, found: set[str]) -> None:
    assert forbidden_imports("data", line) == found


@every(travelling)
def test_the_travelling_folder_imports_only_siblings(path: Path) -> None:
    assert far_imports(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "line",
    [
        "from ..arguments import x",
        "from .a.b import x",
        "from . import x",  # unseen by the search that copies files along with a model
        "import hf_mt",
        "from hf_mt.model import x",
    ],
)
def test_an_import_that_cannot_travel_would_be_found(line: str) -> None:
    assert far_imports(line)


@every(sources)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LINES.get(path.name, 400)
    assert long_functions(source, limit=80) == {}


def test_a_long_function_would_be_found() -> None:
    assert long_functions("def f():\n" + "    x = 1\n" * 80, limit=80) == {"f": 81}


@every([*modules, *travelling])
def test_only_what_has_to_print_prints(path: Path) -> None:
    assert prints(path.read_text(encoding="utf-8"), PRINTERS.get(path.name, set())) == []


def test_a_print_would_be_found() -> None:
    source = "def run_script():\n    print(1)\ndef other():\n    print(2)\n"
    assert prints(source, set()) == [2, 4]
    assert prints(source, {"run_script"}) == [4]


@every([path for path in sources if path.name != "position_encodings.py"])
def test_nothing_asks_which_position_encoding_it_has(path: Path) -> None:
    assert not COMPARISON.search(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        'if config.position_encoding == "rope":',
        'if self.config.position_encoding in ("t5", "alibi"):',
        'if position_encoding not in ("t5",):',
        'if settings["position_encoding"] != "none":',
        'if getattr(config, "position_encoding") == "none":',
        "match config.position_encoding:",
    ],
)
def test_the_search_for_such_questions_would_find_them(line: str) -> None:
    assert COMPARISON.search(line)
    assert not COMPARISON.search("POSITION_ENCODINGS[config.position_encoding]  # position_encoding in words")


def strangers(names: set[str]) -> set[str]:
    """Entries of the top level that neither belong there nor are ignored by git."""
    unknown = names - TOP_LEVEL
    done = subprocess.run(["git", "check-ignore", "--", *unknown], cwd=ROOT, capture_output=True, text=True)
    return unknown - set(done.stdout.split())


def test_the_top_level_holds_only_what_belongs_there() -> None:
    present = {path.name for path in ROOT.iterdir()}
    assert present >= {"hf_mt", "tests", "pyproject.toml"}
    assert strangers(present) == set()
    assert strangers(present | {"utils", ".ruff_cache"}) == {"utils"}
