"""The house stays simple: who may import whom, what stays small, and what starts without torch.

Read from the source with `ast`, so also what stands inside a function counts.
"""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOBS = ("data_prep", "train", "sample")
PACKAGES = ("slams", *JOBS)
ONLY_IN = {"deepspeed": "train.engine", "torch.distributed": "train.engine", "omegaconf": "slams.config"}
NOT_IN_SLAMS = ("argparse", "os.environ", "os.getenv")
DRAWERS = ("utils", "helpers", "misc", "common")
FUNCTION_LINES, MODULE_LINES = 60, 400
LONGER = {"data_prep.gcm": 470}  # one program that runs in another environment and may import nothing of the project
SEEDING = ("seed", "manual_seed", "default_rng", "RandomState", "Random", "SeedSequence", "Philox", "Generator")
CLOCKS = ("time.", "datetime.", "os.getpid", "os.urandom", "uuid.", "secrets.")
LIGHT = ["slams.spec", "slams.rng", "slams.config", "slams.statistics", "slams.posterior"]
LIGHT += ["data_prep.sources", "data_prep.config", "sample.plan", "sample.config"]


def all_modules():
    """Source by dotted name."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return {name: path.read_text() for name, path in zip(names, paths, strict=True)}


def dotted(node):
    """The name that an attribute spells, "torch.distributed.get_rank"; "" where it begins with anything but a name."""
    if isinstance(node, ast.Attribute):
        start = dotted(node.value)
        return f"{start}.{node.attr}" if start else ""
    return node.id if isinstance(node, ast.Name) else ""


def imported(tree):
    """Every name that is imported, anywhere: `from a import b` is "a.b"; by `import_module` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("." * node.level + f"{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(("import_module", "__import__")):
            first = next((n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)), "")
            yield str(first).rstrip(".")


def within(name, root):
    return name == root or name.startswith(f"{root}.")


def length(function):
    """Lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def seeded_by_chance(tree):
    """Lines that seed a generator with nothing, or with the clock, the process or the system."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in SEEDING:
            given = [n for part in (*node.args, *node.keywords) for n in ast.walk(part)]
            if not given or any(isinstance(n, ast.Call) and dotted(n.func).startswith(CLOCKS) for n in given):
                yield node.lineno


def violations(name, source):
    """What is wrong with one module, in sentences."""
    tree, package = ast.parse(source), name.split(".")[0]
    used = set(imported(tree)) | {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = [f"{name}: relative import {u}" for u in used if u.startswith(".")]
    for job in JOBS:
        if job != package and any(within(u, job) for u in imported(tree)):
            found.append(f"{name}: imports the job {job}")
    for tool, home in ONLY_IN.items():
        if name != home and any(within(u, tool) for u in used):
            found.append(f"{name}: sees {tool}, which only {home} may")
    if package == "slams":
        found += [f"{name}: sees {tool}" for tool in NOT_IN_SLAMS if any(within(u, tool) for u in used)]
    if name.split(".")[-1] in DRAWERS:
        found.append(f"{name}: is a drawer, not a name")
    if len(source.splitlines()) > LONGER.get(name, MODULE_LINES):
        found.append(f"{name}: has {len(source.splitlines())} lines")
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found += [f"{name}: {f.name} has {length(f)} lines" for f in functions if length(f) > FUNCTION_LINES]
    return found + [f"{name}: line {line} seeds by chance" for line in seeded_by_chance(tree)]


def cycle(modules):
    """A circle of imports, or None."""
    graph = {}
    for name, source in modules.items():
        parts = [u.split(".") for u in imported(ast.parse(source))]
        known = [[".".join(u[:n]) for n in range(len(u), 0, -1) if ".".join(u[:n]) in modules] for u in parts]
        graph[name] = {names[0] for names in known if names} - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


MODULES = all_modules()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_keeps_the_rules(name):
    assert violations(name, MODULES[name]) == []


def test_no_module_imports_itself_in_a_circle():
    assert len(MODULES) > 50 and cycle(MODULES) is None


def test_the_model_of_the_sample_world_imports_nothing_of_the_project():
    assert not [u for u in imported(ast.parse(MODULES["data_prep.gcm"])) if u.split(".")[0] in PACKAGES]


def test_what_plans_and_describes_starts_without_torch():
    light = LIGHT + [name for name in MODULES if within(name, "slams.contracts")]
    code = f"import sys, {', '.join(light)}; print([m for m in ('torch', 'deepspeed', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


LONG = "def f():\n" + "    x = 1\n" * FUNCTION_LINES


@pytest.mark.parametrize(
    ("name", "source", "sentence"),
    [
        ("sample.x", "import train.loop", "imports the job train"),
        ("sample.x", "def f():\n    from data_prep.regrid import conservative", "imports the job data_prep"),
        ("train.x", "import_module(f'sample.{name}')", "imports the job sample"),
        ("slams.x", "from sample import plan", "imports the job sample"),
        ("slams.x", "from . import spec", "relative import ..spec"),
        ("train.loop", "import deepspeed", "sees deepspeed"),
        ("train.loop", "from torch import distributed", "sees torch.distributed"),
        ("slams.x", "import torch\ntorch.distributed.barrier()", "sees torch.distributed"),
        ("train.x", "import torch.distributed as dist", "sees torch.distributed"),
        ("train.config", "from omegaconf import OmegaConf", "sees omegaconf"),
        ("slams.x", "import argparse", "sees argparse"),
        ("slams.x", "import os\nos.environ['A']", "sees os.environ"),
        ("slams.x", "from os import environ", "sees os.environ"),
        ("slams.utils", "", "is a drawer"),
        ("slams.x", "x = 1\n" * (MODULE_LINES + 1), "has 401 lines"),
        ("slams.x", LONG, "f has 61 lines"),
        ("slams.x", "np.random.seed(int(time.time()))", "line 1 seeds"),
        ("slams.x", "torch.manual_seed(os.getpid())", "line 1 seeds"),
        ("slams.x", "x = random.Random(seed=uuid.uuid4().int)", "line 1 seeds"),
        ("slams.x", "x = np.random.default_rng()", "line 1 seeds"),
    ],
)
def test_a_broken_rule_is_reported(name, source, sentence):
    found = violations(name, source)
    assert len(found) == 1 and sentence in found[0]


@pytest.mark.parametrize("source", ['def f():\n    """' + "long\n" * 80 + '"""', "torch.manual_seed(seed(3, 'init'))"])
def test_what_is_allowed_is_not_reported(source):
    assert violations("slams.x", source) == []


def test_a_circle_is_reported_also_through_a_function():
    modules = {"slams.a": "from slams import b", "slams.b": "def f():\n    from slams.a import x", "slams": ""}
    assert set(cycle(modules)) == {"slams.a", "slams.b"}
