"""What is there for the day of the first release says nothing that cannot be run here by nox."""

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOXFILE = ast.parse((ROOT / "noxfile.py").read_text())
SESSIONS = {
    node.name
    for node in NOXFILE.body
    if isinstance(node, ast.FunctionDef) and "session" in ast.unparse(node.decorator_list)
}
INSTALLS = {
    "python -m pip install 'nox[uv]>=2025.2.9'",
    "apt-get update",
    "apt-get install --yes g++-aarch64-linux-gnu qemu-user-static",
}


def steps():
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            yield from ((path, step) for step in job.get("steps", ()))


def test_workflows_run_nox_and_what_nox_needs():
    commands = [shlex.split(step["run"]) for _, step in steps() if "run" in step]
    assert commands
    for program, *arguments in commands:
        if program == "nox":
            option, *names = arguments
            assert option == "-s"
            assert set(names) <= SESSIONS
        elif program == "bash":
            assert (ROOT / arguments[0]).exists()
        else:
            assert shlex.join([program, *arguments]) in INSTALLS


def test_ci_runs_sessions_that_exist():
    text = (ROOT / ".ci" / "run").read_text()
    named = re.findall(r"^nox --sessions ([a-z0-9 ]+)", text, re.MULTILINE)
    assert len(named) > 2
    assert set(" ".join(named).split()) <= SESSIONS


def test_sessions_take_presets_that_exist():
    presets = json.loads((ROOT / "CMakePresets.json").read_text())["workflowPresets"]
    text = (ROOT / "noxfile.py").read_text()
    named = re.findall(r'"--preset", "(\w+)"', text)
    assert named
    assert set(named) <= {preset["name"] for preset in presets}


def test_workflows_ask_for_no_more_rights_than_they_use():
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        for name, job in workflow["jobs"].items():
            assert ("permissions" in job) == ((path.name, name) == ("publish.yml", "pypi"))


def test_every_test_that_a_wheel_is_tested_with_exists():
    command = PROJECT["tool"]["cibuildwheel"]["test-command"][-1]
    tests = [word for word in shlex.split(command) if word.startswith("tests/")]
    assert len(tests) > 10
    assert all((ROOT / test).exists() for test in tests)


def test_the_conda_recipe_asks_for_what_the_project_does():
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    project = PROJECT["project"]
    assert recipe["context"]["version"] == project["version"]
    assert recipe["about"]["license"] == project["license"]
    assert recipe["about"]["summary"] == project["description"]
    needed = recipe["requirements"]

    def asked(listed):
        return {re.sub(" ", "", entry) for entry in listed if isinstance(entry, str)}

    assert asked(needed["run"]) == {f"python{project['requires-python']}", *project["dependencies"]}
    assert asked(needed["host"]) == {"python", "pip", *PROJECT["build-system"]["requires"]}
