"""Command line > experiment > method > root; and where configuration files come from."""

import pytest

from advml import roots
from advml.compose import compose
from advml.errors import ConfigError


@pytest.fixture
def mine(inside):
    """A configuration folder of one's own, with spaces and a quote in its name."""
    root = inside / "my 'own' configs, all"
    for group in ("method", "dataset", "model", "experiment"):
        (root / group).mkdir(parents=True)
    (root / "method/brisk.yaml").write_text(
        "# Supervised learning on wine, briskly.\n"
        "defaults:\n"
        "  - supervised\n"
        "  - override /dataset@_global_.dataset: wine\n"
        "  - override /model@_global_.model: linear\n"
        "  - _self_\n"
        "lr: 0.5\n"
        "epochs: 7\n"
    )
    (root / "experiment/careful.yaml").write_text(
        "# @package _global_\n"
        "# Brisk learning, but carefully.\n"
        "defaults:\n"
        "  - override /method: brisk\n"
        "  - override /dataset: iris\n"
        "  - _self_\n"
        "seed: 11\n"
        "method:\n"
        "  lr: 0.25\n"
    )
    return root


def chosen(tree):
    return (tree["method"]["name"], tree["dataset"]["name"], tree["model"]["name"], tree["seed"],
            tree["method"]["lr"], tree["method"]["epochs"])  # fmt: skip


class TestPrecedence:
    @pytest.fixture(autouse=True)
    def found(self, mine, monkeypatch):
        monkeypatch.setenv("ADVML_CONFIG_PATH", str(mine))

    def test_root(self):
        assert chosen(compose([])[0]) == ("supervised", "digits", "mlp", 0, 0.001, 30)

    def test_method_over_root(self):
        assert chosen(compose(["method=brisk"])[0]) == ("supervised", "wine", "linear", 0, 0.5, 7)

    def test_experiment_over_method(self):
        assert chosen(compose(["experiment=careful"])[0]) == ("supervised", "iris", "linear", 11, 0.25, 7)

    def test_command_line_over_experiment(self):
        words = ["experiment=careful", "dataset=moons", "model=mlp", "method.lr=0.125", "seed=3", "method.epochs=2"]
        assert chosen(compose(words)[0]) == ("supervised", "moons", "mlp", 3, 0.125, 2)
        assert chosen(compose(words[::-1])[0]) == chosen(compose(words)[0])

    def test_choices_are_remembered_by_the_names_of_their_files(self):
        _, choices = compose(["experiment=careful", "model=mlp"])
        assert {group: choices[group] for group in ("method", "dataset", "model", "experiment")} == {
            "method": "brisk", "dataset": "iris", "model": "mlp", "experiment": "careful"
        }  # fmt: skip

    def test_an_experiment_can_be_none(self):
        assert compose(["experiment=null"])[0] == compose([])[0]


class TestPlaces:
    def test_config_dir(self, mine, run_cli):
        for option in (["--config-dir", str(mine)], [f"--config-dir={mine}"], ["-cd", mine.name]):
            said = run_cli("run", *option, "method=brisk", "method.epochs=1", "progress=off", "figures=false")
            assert said.code == 0, said.err
            assert said.out.startswith("supervised on wine")
            said = run_cli("config", *option, "experiment=careful")
            assert "lr: 0.25" in said.out
        assert run_cli("run", "method=brisk").code == 2

    def test_config_dir_in_a_sweep(self, mine, run_cli):
        words = ("method=brisk", "seed=0,1", "method.epochs=1", "progress=off", "figures=false")
        assert run_cli("run", "-m", "--config-dir", str(mine), *words).code == 0

    def test_several_folders(self, mine, inside, monkeypatch, run_cli):
        other = inside / "other"
        (other / "dataset").mkdir(parents=True)
        (other / "dataset/tiny_iris.yaml").write_text("# A few irises.\ndefaults: [iris, _self_]\nlimit: 30\n")
        monkeypatch.setenv("ADVML_CONFIG_PATH", f"{mine}:{other}")
        said = run_cli("list", "datasets")
        assert "tiny_iris A few irises." in " ".join(said.out.split())
        assert "brisk" in run_cli("list", "methods").out
        assert compose(["method=brisk", "dataset=tiny_iris"])[0]["dataset"]["limit"] == 30
        assert "careful" in run_cli("list", "experiments").out

    def test_what_is_shipped_cannot_be_replaced(self, mine, monkeypatch):
        (mine / "method/supervised.yaml").write_text("# Another.\nname: supervised\nlr: 3.0\n")
        monkeypatch.setenv("ADVML_CONFIG_PATH", str(mine))
        assert compose([])[0]["method"]["lr"] == 0.001

    def test_check_all_finds_their_mistakes(self, mine, monkeypatch, run_cli):
        monkeypatch.setenv("ADVML_CONFIG_PATH", str(mine))
        (mine / "method/broken.yaml").write_text("# Broken.\ndefaults: [supervised, _self_]\nlrr: 3.0\n")
        known = roots.members  # those that are shipped take half a minute, and have a test of their own
        monkeypatch.setattr(roots, "members", lambda group: {
            name: path for name, path in known(group).items() if path.is_relative_to(mine) or name == "supervised"
        })  # fmt: skip
        said = run_cli("check", "--all")
        assert said.code == 2
        assert said.err == "advml: method=broken: method.lrr: unknown key; did you mean method.lr?\n"

    def test_a_run_of_a_file_of_ones_own_is_resumed_without_it(self, mine, run_cli):
        """The saved configuration is complete."""
        words = ("method=brisk", "limits.steps=2", "progress=off", "figures=false")
        said = run_cli("run", "--config-dir", str(mine), *words)
        assert said.code == 0
        said = run_cli("resume", said.last, "limits.steps=3")
        assert (said.code, said.err) == (0, "")


def test_the_binder_never_sees_hydra():
    tree, _ = compose([])
    assert "hydra" not in tree


def test_mistakes_of_composing_raise_one_error(inside):
    with pytest.raises(ConfigError) as caught:
        compose(["method=x", "dataset=y", "seed"])
    assert len(caught.value.mistakes) == 3
