"""Randomness by key, the environment and what differs in it, the identity of a configuration."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from advml.errors import ConfigError
from advml.runner import environment
from advml.runner.identity import INDIFFERENT, identity
from advml.runner.randomness import KeyedRng, derive, numeric_settings, reseed


class TestKeys:
    def test_pure(self):
        assert derive(3, "shuffle", 1, "a") == derive(3, "shuffle", 1, "a")
        assert 0 <= derive(3, "shuffle") < 2**63

    def test_known_values(self):
        """Changing these changes every run ever recorded."""
        assert derive(0, "build", "model") == 1242034251065514357
        assert KeyedRng(0)("shuffle", 1).initial_seed() == derive(0, "shuffle", 1)

    def test_all_parts_matter(self):
        keys = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", "1"), (0, "a", 0, 1), (0, "a", 1, 0),
                (0, "a0"), (0, "a", ""), (-1, "a"), (0, "a", "0, 1")]  # fmt: skip
        assert len({derive(*key) for key in keys}) == len(keys)

    def test_looks_random(self):
        bits = [bin(derive(seed, "purpose", key)).count("1") for seed in range(20) for key in range(50)]
        assert abs(sum(bits) / len(bits) - 31.5) < 0.5

    def test_a_generator_for_a_key_is_always_fresh(self):
        rng = KeyedRng(5)
        first = torch.rand(4, generator=rng("x", 1))
        torch.rand(100, generator=rng("x", 2))
        assert torch.equal(first, torch.rand(4, generator=rng("x", 1)))
        assert not torch.equal(first, torch.rand(4, generator=rng("x", 2)))
        assert not torch.equal(first, torch.rand(4, generator=KeyedRng(6)("x", 1)))

    def test_another_process_draws_the_same(self):
        program = "from advml.runner.randomness import derive; print(derive(7, 'p', 'q', 2))"
        hashing = os.environ | {"PYTHONHASHSEED": "123"}
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, env=hashing, check=True)
        assert int(ended.stdout) == derive(7, "p", "q", 2)

    def test_reseeding_covers_python_numpy_and_torch(self):
        drawn = []
        for key in (1, 1, 2):
            reseed(0, "step", key)
            drawn.append((random.random(), float(np.random.rand()), torch.rand(()).item()))
        assert drawn[0] == drawn[1]
        assert all(one != other for one, other in zip(drawn[1], drawn[2], strict=True))


class TestNumericSettings:
    def test_come_back_even_after_an_error(self):
        def state():
            random_numbers = random.random(), float(np.random.rand()), torch.rand(()).item()
            fill = torch.utils.deterministic.fill_uninitialized_memory
            modes = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark, fill
            tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            return torch.get_num_threads(), modes, tf32, random_numbers

        def disturbed():
            with numeric_settings(3, True):
                reseed(9, "something else")
                assert torch.get_num_threads() == 3
                assert not torch.backends.cudnn.allow_tf32
                assert not torch.backends.cuda.matmul.allow_tf32
                raise RuntimeError("stop")

        reseed(1, "before")
        before = state()
        reseed(1, "before")
        with pytest.raises(RuntimeError, match="stop"):
            disturbed()
        assert state() == before

    @pytest.mark.parametrize(("wanted", "mode", "benchmark"), [(True, 2, False), ("warn", 1, False), (False, 0, True)])
    def test_determinism(self, wanted, mode, benchmark):
        with numeric_settings(1, wanted):
            assert torch.get_deterministic_debug_mode() == mode
            assert torch.are_deterministic_algorithms_enabled() == (mode > 0)
            assert torch.backends.cudnn.benchmark == benchmark
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"]

    @pytest.mark.parametrize("mine", [(True, False), (False, True), (True, True)])
    def test_float32_is_whole(self, mine):
        products = torch.backends.cudnn, torch.backends.cuda.matmul
        before = [one.allow_tf32 for one in products]
        try:
            for one, wanted in zip(products, mine, strict=True):
                one.allow_tf32 = wanted
            with numeric_settings(1, True):
                assert [one.allow_tf32 for one in products] == [False, False]
            assert tuple(one.allow_tf32 for one in products) == mine
        finally:
            for one, wanted in zip(products, before, strict=True):
                one.allow_tf32 = wanted

    def test_torchs_newer_names_for_that_stand(self):
        convolutions = torch.backends.cudnn.conv
        before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
        try:
            with numeric_settings(1, True):
                assert convolutions.fp32_precision == "ieee"
            assert convolutions.fp32_precision == "ieee"
        finally:
            convolutions.fp32_precision = before


class TestEnvironment:
    def test_is_plain_and_says_what_bits_depend_on(self):
        described = environment.describe(torch.device("cpu"), 2, "float64")
        assert json.loads(json.dumps(described)) == described
        assert (described["device"], described["threads"], described["precision"]) == ("cpu", 2, "float64")
        assert described["packages"]["torch"].startswith(torch.__version__.split("+")[0])
        assert described["gpu"] is None
        assert described["cpu"]

    def test_variables_that_matter(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        monkeypatch.setenv("HOME_ADDRESS", "secret")
        variables = environment.describe(torch.device("cpu"), 1, "float32")["variables"]
        assert variables["OMP_NUM_THREADS"] == "7"
        assert set(variables) <= set(environment.VARIABLES)

    def test_the_source(self, tmp_path):
        def git(*words):
            subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words],
                           check=True, capture_output=True)  # fmt: skip

        package = tmp_path / "advml"
        package.mkdir()
        assert environment._git(package) is None
        (package / "a.py").write_text("1\n")
        git("init"), git("add", "."), git("commit", "-m", "a")
        clean = environment._git(package)
        assert (clean["dirty"], clean["diff_sha256"], len(clean["commit"])) == (False, None, 40)
        (package / "a.py").write_text("2\n")
        dirty = environment._git(package)
        (package / "a.py").write_text("3\n")
        dirtier = environment._git(package)
        assert dirty["dirty"]
        assert dirty["commit"] == clean["commit"]
        assert len({dirty["diff_sha256"], dirtier["diff_sha256"], None}) == 3
        (package / "é new.py").write_text("1\n")  # a file that git does not know yet may be what was run
        new = environment._git(package)
        (package / "é new.py").write_text("2\n")
        assert len({each["diff_sha256"] for each in (dirtier, new, environment._git(package))}) == 3
        (package / "a.py").write_text("1\n")
        assert environment._git(package)["dirty"]
        (tmp_path / ".gitignore").write_text("é new.py\n")
        assert not environment._git(package)["dirty"]

    def test_differences(self):
        left = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "gone": 1}
        right = {"a": 1, "b": {"c": 5, "d": {"e": 4}}, "new": None, "added": [1]}
        assert list(environment.differences(left, right)) == [
            "b.c: 2 → 5", "b.d.e: 3 → 4", "gone: 1 → None", "added: None → [1]"
        ]  # fmt: skip
        assert list(environment.differences(left, left)) == []

    def test_threads(self, monkeypatch):
        assert environment.resolve_threads(5) == 5
        assert 1 <= environment.resolve_threads("auto") <= 8
        monkeypatch.setattr(environment, "_physical_cores", lambda: 64)
        assert environment.resolve_threads("auto") == 8

    def test_devices(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert environment.resolve_device("auto") == environment.resolve_device("cpu") == torch.device("cpu")
        with pytest.raises(ConfigError, match="device=cuda: torch finds no CUDA device"):
            environment.resolve_device("cuda")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert environment.resolve_device("auto") == environment.resolve_device("cuda") == torch.device("cuda", 0)
        assert environment.resolve_device("cuda:1") == torch.device("cuda", 1)
        assert environment.resolve_device("cpu") == torch.device("cpu")
        with pytest.raises(ConfigError, match=r"device=cuda:2: this machine has 2 CUDA device\(s\), numbered from 0"):
            environment.resolve_device("cuda:2")


class TestIdentity:
    def test_where_and_how_a_run_is_shown_does_not_matter(self, tree):
        config = tree()
        changed = config | dict.fromkeys(INDIFFERENT, "something else")
        assert set(INDIFFERENT) <= set(config)
        assert identity(changed) == identity(config)
        assert identity(dict(reversed(config.items()))) == identity(config)

    @pytest.mark.parametrize("change", [{"seed": 1}, {"precision": "float64"}, {"limits": {"steps": 3}}])
    def test_what_is_computed_does(self, change, tree):
        assert identity(tree() | change) != identity(tree())
