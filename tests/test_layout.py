"""The design's layout, as far as a machine can check it."""

import ast
import pathlib
import subprocess
import sys

import pytest

import bitflax

PACKAGE = pathlib.Path(bitflax.__file__).parent
ROOT = PACKAGE.parent

# A module imports only from rows above its own, never from its own row or below.
# The rows of one level keep order inside it.
ROWS = """
L0  types errors data.examples
L0  runs.stages trees inference.onnx_graph recipe.overrides files runs.svg progress model.torch_bin
L0  training.hosts
L0  packed.safetensors_file training.hosts
L1  model.matmul packed.bitfields model.layers distillation.teacher_outputs
L1  recipe.overrides quantization.quantizers distillation.losses distillation.losses distillation.student data.metrics
L1  model.leaves
L1  model.sites model.layers training.optimizer quantization.learned_activations training.steps inference.provenance
L1  model.hf_config model.names files model.pretrained training.checkpoints model.torch_bin runs.log
L1  runs.folder training.loop
L1  data.tables data.text data.icd10 data.passages data.corpus training.compile_cache
L1  data.augmentation.word_vectors data.augmentation.resumable_file
L2  model.layers
L2  quantization.rules model.apply distillation.projection packed.packing packed.metadata packed.metadata packed.tokenizer model.hf_weights
L2  data.tables data.batches data.corpus
L2  packed.tensors packed.tokenizer quantization.splitting distillation.student quantization.rules model.names inference.engines distillation.student
L2  data.augmentation.words
L2  data.augmentation.words
L2  data.glue data.own_files
L2  data.tfds
L2  data.tfds
L2  data.corpus
L2  data.tasks
L3  packed.file
L3  packed.file model.pretrained training.steps training.parallel training.checkpoints runs.folder distillation.teacher_outputs
L3  distillation.vocabulary inference.onnx_activations inference.onnx_matrices
L3  inference.onnx_matrices
L3  inference.onnx_bert
L4  data.augmentation.masked_lm
L4  data.augmentation.augment
L4  recipe.schema
L4  recipe.schema
L4  recipe.describe inference.stored_model training.evaluation training.loop
L4  inference.engines
L4  inference.predictor inference.model_card
L4  inference.exporting commands inference.stored_model
L5  runs.report recipe.loading packed.sizes
L5  recipe.describe
L5  runs.experiment
L5  runs.experiment runs.initialization runs.initialization
L5  runs.experiment
L5  runs.checks runs.results
L5  runs.prepare
L6  runs.stages
L7  commands
L7  cli
"""
RANK = {
    name: rank
    for rank, row in enumerate(ROWS.strip().splitlines())
    for name in row.split()[1:]
}

# Who may import a package, and whether at the top of the file.
ONLY = {
    "transformers": {"data/text.py", "model/pretrained.py"},
    "tensorflow_datasets": {"data/tfds.py"},
    "orbax": {"training/checkpoints.py"},
    "flax.linen": {"model/layers.py"},
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
    "onnx",
    "onnxruntime",
)
TOP = {"pyproject.toml", "bitflax", "recipes", "tests", "colab", "README.md", "LICENSE"}

FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))
FILES = [path for path in FILES if not path.startswith("_recipes/")]
MODULES = {
    path[:-3].replace("/", "."): PACKAGE / path
    for path in FILES
    if not path.endswith("__init__.py")
}


def imported(tree: ast.AST) -> set[str]:
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
    return names


def parsed(path: str) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text("utf-8"))


def internal(tree: ast.AST) -> set[str]:
    """Return the bitflax modules that a tree imports, without ``bitflax.``."""
    found = set()
    for name in imported(tree):
        if name.split(".")[0] == "bitflax":
            short = name.removeprefix("bitflax.")
            parent = short.rpartition(".")[0]
            found |= {part for part in (short, parent) if part in MODULES}
    return found


def uses(names: set[str], package: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for name in names)


def test_every_module_has_one_row():
    listed = ROWS.split()
    assert len([name for name in listed if name in RANK]) == len(RANK)
    unplaced, gone = set(MODULES) - set(RANK), set(RANK) - set(MODULES)
    assert not unplaced, f"give them a row in ROWS: {sorted(unplaced)}"
    assert not gone, f"take them out of ROWS: {sorted(gone)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_upwards(module):
    wrong = {
        name
        for name in internal(ast.parse(MODULES[module].read_text("utf-8")))
        if RANK.get(name, 0) >= RANK.get(module, len(RANK))
    }
    assert not wrong, f"{module} imports from its own row or below: {sorted(wrong)}"


def test_imports_inside_functions_are_seen():
    tree = ast.parse("def f():\n    from bitflax import cli\n    import bitflax.trees")
    assert internal(tree) == {"cli", "trees"}
    tree = ast.parse("def f():\n    from bitflax.data.text import Tokenizer")
    assert internal(tree) == {"data.text"}


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


def test_files_fit_in_a_head():
    lengths = {path: len((PACKAGE / path).read_text().splitlines()) for path in FILES}
    long = {path: lines for path, lines in lengths.items() if lines > 300}
    assert not long


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
