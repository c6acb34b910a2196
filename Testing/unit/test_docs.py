"""The commands that README promises are the ones that are run, and what it shows is there."""

import re
import shlex
from pathlib import Path

import pytest
from test_borders import FLOORS

from DeepLabSegLib.cli import EXIT_CODES, _parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_ci_runs_the_readmes_test_command():
    setup = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(setup) == 2
    assert setup[0].endswith("deeplabseg demo")
    assert setup[1].endswith("python -m pytest")
    assert setup[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "Resources/SampleData/README.md"])
def test_links_and_pictures_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} points to {target}"


def test_files_named_in_the_guides_exist():
    for page in ("README.md", "CONTRIBUTING.md"):
        for name in re.findall(
            r"`((?:Testing|DeepLabSegLib|Resources)/[\w./]+)`", (ROOT / page).read_text(encoding="utf-8")
        ):
            assert (ROOT / name).exists(), f"{page} names {name}"


def test_the_order_of_imports_is_the_one_that_is_kept():
    order = CONTRIBUTING.split("which `Testing/unit/test_borders.py` keeps:\n")[1].split(".\n")[0]
    assert [set(re.findall(r"\w+", floor)) for floor in order.split("←")] == FLOORS


def test_every_file_of_the_library_is_in_the_table_of_its_parts():
    table = CONTRIBUTING.split("| file or folder of `DeepLabSegLib` |")[1].split("\n\n")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines()[2:]]
    parts = {name: told for names, told in rows for name in re.findall(r"`(\w+)(?:\.py|/)`", names)}
    assert parts.keys() == set().union(*FLOORS)
    for file in (ROOT / "DeepLabSegLib").glob("*/*.py"):
        if file.name != "__init__.py":
            assert f"`{file.stem}`" in parts[file.parent.name], file


def test_the_readme_says_the_exit_codes():
    assert EXIT_CODES in README


def test_every_command_of_the_guides_has_arguments_that_there_are():
    blocks = re.findall(r"```bash\n(.*?)```", README + CONTRIBUTING, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").replace("$fold", "0").splitlines()
    commands = [found[1] for line in lines if (found := re.search(r"(?:deeplabseg|DeepLabSegLib\.cli) ([^;#]+)", line))]
    assert len(commands) > 20
    for command in commands:
        _parser(as_json=False).parse_args(shlex.split(command))


def test_the_readmes_figures_are_those_of_the_models():
    from DeepLabSegLib.bundle import read_bundle
    from DeepLabSegLib.catalog import resource

    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line[:1] == "|"]
    models = sorted((resource("Models")).iterdir())
    assert models
    for model in models:
        bundle = read_bundle(model)
        header = next(row for row in rows if row[0] == "structure and measure" and f"`{bundle.name}`" in row)
        assert bundle.figures
        for name, value in bundle.figures.items():
            row = next(row for row in rows if row[0] == name and len(row) == len(header))
            assert row[header.index(f"`{bundle.name}`")] == f"{value:.3f}", (bundle.name, name)
