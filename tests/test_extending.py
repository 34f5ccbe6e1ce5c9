"""docs/extending.md, run as it stands: the short form in an empty folder, and the package with its entry points."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from runs import assert_same_run

import advml
from advml import registry, roots
from advml.errors import ConfigError
from advml.runner.folder import RunFolder

PAGE = Path(__file__).parents[1] / "docs/extending.md"
QUIET = ("progress=off", "figures=false", "threads=1", "device=cpu")


def blocks():
    """{path in the line above: text} of every file on the page, and the commands."""
    page = PAGE.read_text()
    found = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)```$", page, re.DOTALL | re.MULTILINE))
    commands = [line for text in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in text.splitlines()]
    assert page.count("```") == 2 * (len(found) + 4)
    return found, commands


FILES, COMMANDS = blocks()


@pytest.fixture
def written(inside, monkeypatch):
    """An empty folder with the page's files in it; what they import is forgotten afterwards."""
    for name, text in FILES.items():
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_text(text)
    modules = [name.removesuffix(".py") for name in FILES if name.endswith(".py")]
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield inside
    for module in modules:
        sys.modules.pop(module, None)


def test_the_page_has_what_it_promises():
    assert set(FILES) == {
        "random_search.py", "my_configs/method/random_search.yaml", "my_models.py", "my_configs/model/sines.yaml",
        "my_data.py", "my_configs/dataset/spirals.yaml", "pyproject.toml", "my_l2.py", "my_configs/method/l2.yaml",
        "my_configs/experiment/l2_split_digits.yaml",
    }  # fmt: skip
    assert len(COMMANDS) == 5


class TestShortForm:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_commands(self, command, written, run_cli):
        advml_word, *words = command.split()
        assert advml_word == "advml"
        said = run_cli(*words, *(QUIET if words[0] == "run" else []))
        assert said.code == 0, said.err
        assert said.err == ""

    def test_a_method_without_data_model_and_gradients(self, written, run_cli, monkeypatch):
        monkeypatch.setenv("ADVML_CONFIG_PATH", str(written / "my_configs"))
        words = ("run", "method=random_search", *QUIET, "checkpoint_seconds=0")
        said = run_cli(*words)
        assert said.code == 0, said.err
        whole = RunFolder.open(said.last)
        assert whole.path.parts[-3:-1] == ("random_search.RandomSearch", "none")
        result = whole.result()
        values = [record["value"] for record in whole.records() if record["split"] == "train"]
        assert len(values) == 20
        assert values == sorted(values, reverse=True)
        assert result["objective"]["value"] == values[-1] < values[0]
        assert result["budget"] == {"steps": 20, "evaluations": 2000, "flops_estimate": None}
        assert result["parameters"] is None
        assert result["metrics"]["test"] == {}
        assert not (whole / "checkpoints/model.pt").exists()
        with pytest.raises(ConfigError, match="holds no trained network"):
            _ = advml.load(whole.path).model

        limited = run_cli(*words, "limits.evaluations=700")
        assert RunFolder.open(limited.last).result()["stopped_by"] == "limits.evaluations=700 reached (700)"
        assert run_cli("resume", limited.last, "limits.evaluations=null").code == 0
        assert_same_run(whole.path, limited.last)
        said = run_cli("reproduce", str(whole.path))
        assert (said.code, "identical: all" in said.out) == (0, True)
        assert "random_search Random search for the minimum" in " ".join(run_cli("list", "methods").out.split())
        known = roots.members  # those that are shipped take half a minute, and have a test of their own
        monkeypatch.setattr(roots, "members", lambda group: {
            name: path for name, path in known(group).items() if path.is_relative_to(written)
        })  # fmt: skip
        said = run_cli("check", "--all")
        assert (said.code, said.out) == (0, "5 of 5 configurations are well\n")

    def test_a_method_of_a_family(self, written, run_cli):
        """Without its pull it is fine-tuning, to the bit; interrupted and resumed it is itself."""
        brief = ("baselines=off", "method.iterations=20", "method.block=10", "checkpoint_seconds=0")
        chosen = {
            "finetune": ["method=finetune"],
            "free": ["method=l2", "method.strength=0"],
            "held": ["method=l2"],
            "cut": ["method=l2", "limits.steps=3"],
        }
        found = {}
        for name, more in chosen.items():
            said = run_cli("run", "--config-dir", "my_configs", *more, *brief, *QUIET)
            assert said.code == 0, said.err
            found[name] = RunFolder.open(said.last)
        assert found["free"].records() == found["finetune"].records() != found["held"].records()
        assert run_cli("resume", str(found["cut"].path), "limits.steps=null").code == 0
        assert_same_run(found["held"].path, found["cut"].path)

    @pytest.mark.slow
    def test_killed_and_resumed(self, written, forks, tree):
        config = tree("checkpoint_seconds=0", base=("--config-dir", "my_configs", "method=random_search"))
        assert forks.run("start", config, cwd=written).code == 0
        (calm,) = written.glob("outputs/*/*/*")
        died = forks.run("start", config, cwd=written, fault={"kind": "die", "point": "last.pt: renamed", "nth": 7})
        assert died.code == 9
        (crashed,) = set(written.glob("outputs/*/*/*")) - {calm}
        assert forks.run("resume", str(crashed), {}, cwd=written).code == 0
        assert_same_run(calm, crashed)

    def test_what_does_not_fit_is_refused(self, written, run_cli, monkeypatch):
        monkeypatch.setenv("ADVML_CONFIG_PATH", str(written / "my_configs"))
        said = run_cli("run", "method=random_search", "dataset=iris", "model=mlp")
        assert said.code == 2
        method = "method=random_search:RandomSearch"
        assert said.err.splitlines() == [
            f"advml: model=mlp: {method} trains no network; use model=none",
            f"advml: dataset=iris: {method} uses no data; use dataset=none",
        ]

    def test_the_network_of_a_finished_run(self, written, run_cli):
        said = run_cli("run", "--config-dir", "my_configs", "model=sines", "dataset=spirals", "method.epochs=2", *QUIET)
        run = advml.load(said.last)
        assert type(run.model).__name__ == "Sines"
        assert run.predict([[1.0, 2.0]]).shape == (1, 2)

    def test_the_file_is_gone(self, written, run_cli):
        said = run_cli("run", "--config-dir", "my_configs", "model=sines", "dataset=spirals", "method.epochs=2", *QUIET)
        (written / "my_models.py").unlink()
        sys.modules.pop("my_models")
        again = run_cli("reproduce", said.last)
        assert again.code == 2
        assert again.err.startswith("advml: model=my_models:Sines: cannot load my_models:Sines: ModuleNotFoundError:")

    @pytest.mark.parametrize("broken", ["1 / 0", "def", "raise RuntimeError('no\\nway')"])
    def test_a_file_that_does_not_import(self, broken, written, run_cli):
        (written / "my_models.py").write_text(broken + "\n")
        said = run_cli("run", "--config-dir", "my_configs", "model=sines")
        assert (said.code, len(said.err.splitlines())) == (2, 1)
        assert said.err.startswith("advml: model=my_models:Sines: cannot load")


class TestPackage:
    @pytest.fixture
    def site(self, tmp_path):
        """The package as an installer would lay it out, without running one."""
        project = tomllib.loads(FILES["pyproject.toml"])["project"]
        site = tmp_path / "site"
        package = site / "advml_random_search"
        (package / "configs/method").mkdir(parents=True)
        (package / "__init__.py").write_text('"""Random search."""\n')
        (package / "random_search.py").write_text(FILES["random_search.py"])
        text = FILES["my_configs/method/random_search.yaml"]
        (package / "configs/method/random_search.yaml").write_text(re.sub(r"name: \S+", "name: random_search", text))
        info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        about = ("Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}", "")
        (info / "METADATA").write_text("\n".join(about))
        lines = []
        for group, points in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        return site

    def test_is_found_and_runs(self, site, inside):
        def say(*words):
            environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
            return subprocess.run(
                [sys.executable, "-m", "advml", *words], capture_output=True, text=True, cwd=inside, env=environment,
                check=False,
            )  # fmt: skip

        listed = say("list", "methods")
        line = "random_search Random search for the minimum of a test function"
        assert line in " ".join(listed.stdout.split()), listed.stderr
        ran = say("run", "method=random_search", "method.rounds=3", *QUIET)
        assert ran.returncode == 0, ran.stderr
        folder = RunFolder.open(ran.stdout.splitlines()[-1])
        assert folder.path.parts[-3:-1] == ("random_search", "none")
        assert len(folder.records()) == 7

    def test_half_a_plug_in_breaks_nothing(self, site, run_cli, monkeypatch):
        (site / "advml_random_search/random_search.py").unlink()
        monkeypatch.syspath_prepend(site)
        registry._table.cache_clear()
        try:
            said = run_cli("run", "method=random_search")
            assert (said.code, len(said.err.splitlines())) == (2, 1)
            assert "cannot load advml_random_search.random_search:RandomSearch" in said.err
            assert run_cli("check", "method=supervised").code == 0
            (site / "advml_random_search/__init__.py").unlink()
        finally:
            registry._table.cache_clear()
            for module in [name for name in sys.modules if name.startswith("advml_random_search")]:
                del sys.modules[module]

    def test_cannot_replace_a_shipped_name(self, site, monkeypatch):
        (info,) = site.glob("*.dist-info")
        target = "advml_random_search.random_search:RandomSearch"
        (info / "entry_points.txt").write_text(f"[advml.methods]\nsupervised = {target}\n")
        monkeypatch.syspath_prepend(site)
        registry._table.cache_clear()
        try:
            assert registry.resolve("method", "supervised").__module__ == "advml.methods.supervised"
        finally:
            registry._table.cache_clear()
