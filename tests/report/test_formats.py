"""Tables as text: what is written can be read back, and nothing in it is a command."""

import csv
import io
import re

import pytest
from rich.console import Console

from advml.report import formats
from advml.report.gather import gather
from advml.report.stats import t_interval
from advml.report.tables import compare


@pytest.fixture
def comparison(sweep):
    """Two models with three seeds each, one of which failed once; names that LaTeX would stumble over."""
    for name, scores in (("big_50%", [0.91, 0.93, 0.92]), ("small|&#", [0.81, 0.80, 0.85])):
        for seed, accuracy in enumerate(scores):
            sweep(f"{name[0]}{seed}", seed=seed, accuracy=accuracy, model__name=name)
    sweep("failed", seed=8, state="failed", model__name="big_50%")
    return compare(gather([sweep.path]), ["valid/accuracy"])


def read(text):
    """A CSV as a list of mappings."""
    return list(csv.DictReader(io.StringIO(text)))


class TestCsv:
    def test_every_number_in_full(self, comparison):
        first, second = read(formats.as_csv(comparison))
        found = t_interval([0.91, 0.93, 0.92])
        assert (first["model.name"], first["seeds"], first["asked"]) == ("big_50%", "3", "4")
        assert float(first["valid/accuracy mean"]) == found.mean
        assert float(first["valid/accuracy high"]) == found.high
        assert (first["valid/accuracy mark"], first["valid/accuracy reference"]) == ("best", "")
        one = comparison.differences[0]
        assert (second["valid/accuracy reference"], second["valid/accuracy common seeds"]) == ("1", "3")
        assert float(second["valid/accuracy difference"]) == one.paired.interval.mean
        assert float(second["valid/accuracy p holm"]) == one.p_holm
        assert (second["samples"], second["seconds"]) == ("400.0", "2.5")

    def test_what_is_missing_is_empty(self, sweep):
        sweep("a", method__name="a", result={"summary": {"only": 1.0}})
        sweep("b", method__name="b")
        first, second = read(formats.as_csv(compare(gather([sweep.path]), ["only"])))
        assert (first["only n"], first["only mean"], first["only sd"], first["only high"]) == ("1", "1.0", "", "")
        assert (second["only n"], second["only mean"], second["only p"]) == ("0", "", "")


class TestMarkdown:
    def test_both_tables_and_the_notes(self, comparison):
        text = formats.as_markdown(comparison)
        main, differences, *notes = text.strip().split("\n\n")
        assert main.splitlines()[:3] == [
            "| # | model | seeds | valid/accuracy |",
            "| ---: | --- | ---: | ---: |",
            "| 1 | big_50% | 3 of 4 | 0.920 ± 0.025 ★ |",
        ]
        assert "small\\|&#" in main
        assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in main.splitlines())
        assert differences.splitlines()[2].startswith("| valid/accuracy | 2 minus 1 | 3 | −0.100 |")
        assert notes == list(comparison.notes)

    def test_two_seeds_in_common_are_too_few_to_test(self, sweep):
        for name, first in (("a", 0), ("b", 1)):
            for seed in range(first, first + 3):
                more = 0.0625 if name == "b" else 0.0
                sweep(f"{name}{seed}", seed=seed, accuracy=0.25 * seed + more, method__name=name)
        text = formats.as_markdown(compare(gather([sweep.path]), ["valid/accuracy"]))
        assert "| valid/accuracy | 1 minus 2 | 2 | −0.0625 | n too small | – | – |" in text


class TestLatex:
    def test_booktabs_and_nothing_unescaped(self, comparison):
        text = formats.as_latex(comparison)
        assert text.startswith("% \\usepackage{booktabs}\n\\begin{tabular}{rlrr}\n\\toprule\n\\# & model & seeds & ")
        body = [line for line in text.splitlines() if line.endswith("\\\\")]
        assert body[1] == "1 & big\\_50\\% & 3 of 4 & \\textbf{0.920} $\\pm$ 0.025\\rlap{$^\\star$} \\\\"
        assert body[2].startswith("2 & small\\textbar{}\\&\\# & 3 & 0.820 $\\pm$ ")
        for line in body:
            bare = re.sub(
                r"\\[%&#_$\\]|\$[^$]*\$|\\textbf\{[^{}]*\}|\\textbar\{\}|\\rlap\{\}", "", re.sub(r"\$[^$]*\$", "", line)
            )
            assert not re.search(r"[%#_^{}$]", bare), line
            assert re.sub(r"\\&", "", line).count("&") in (3, 6)
        assert "\\end{tabular}\n\n\\medskip\\noindent\n\\begin{tabular}" in text
        assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 2

    def test_notes_are_comments(self, comparison):
        text = formats.as_latex(comparison)
        comments = text.rpartition("\\end{tabular}\n")[2].splitlines()
        assert len(comments) == len(comparison.notes)
        assert all(line.startswith("% ") for line in comments)
        assert "★" not in text

    @pytest.mark.parametrize(("text", "escaped"), [
        ("a_b", "a\\_b"), ("50 %", "50 \\%"), ("\\cmd{x}", "\\textbackslash{}cmd\\{x\\}"),
        ("a~b^c", "a\\textasciitilde{}b\\textasciicircum{}c"), ("$x$ & #1", "\\$x\\$ \\& \\#1"),
        ('a|b"', "a\\textbar{}b\\char34{}"), ("−0.5 ± 1 – <", "$-$0.5 $\\pm$ 1 -- $<$"),
    ])  # fmt: skip
    def test_escapes(self, text, escaped):
        assert formats.latex_escaped(text) == escaped

    def test_powers_of_ten_are_set_as_such(self, sweep):
        for name, flops in (("1e-05", 2.5e9), ("b", 3e-7)):
            sweep(name, method__name=name, result={"budget": {"flops_estimate": flops}, "summary": {"score": -flops}})
        text = formats.as_latex(compare(gather([sweep.path]), ["score"]))
        assert "1 & 1e-05 & 1 & $-$2.5$\\times10^{9}$ & 2.50$\\times10^{9}$ \\\\" in text  # a name stays as it is
        assert "2 & b & 1 & $-$3$\\times10^{-7}$ & 3.00$\\times10^{-7}$ \\\\" in text

    def test_ties(self, sweep):
        for name, scores in (("a", [0.5, 0.6, 0.7]), ("b", [0.6, 0.7, 0.5])):
            for seed, accuracy in enumerate(scores):
                sweep(f"{name}{seed}", seed=seed, accuracy=accuracy, method__name=name)
        text = formats.as_latex(compare(gather([sweep.path]), ["valid/accuracy"]))
        assert len(re.findall(r"0\.60 \$\\pm\$ 0\.25\\rlap\{\$\^\\circ\$\}", text)) == 1


class TestRich:
    def test_tables_and_notes(self, comparison):
        buffer = io.StringIO()
        Console(file=buffer, width=150).print(formats.as_rich(comparison))
        text = buffer.getvalue()
        assert re.search(r"│ 1 │ big_50% +│ 3 of 4 │ 0\.920 ± 0\.025 ★ │", text)
        assert re.search(r"│ valid/accuracy │ 2 minus 1 │", text)
        for note in comparison.notes:
            assert note in " ".join(text.split())

    def test_names_are_no_markup(self, sweep):
        sweep("a", model__hidden=[64], model__name="[bold]x")
        sweep("b", model__hidden=[32], model__name="y")
        buffer = io.StringIO()
        Console(file=buffer, width=150).print(formats.as_rich(compare(gather([sweep.path]))))
        assert "[bold]x" in buffer.getvalue()


class TestNumbers:
    @pytest.mark.parametrize(("values", "text"), [
        ([0.91, 0.93], "0.92 ± 0.13"), ([0.9100, 0.9101], "0.91005 ± 0.00064"), ([120.0, 130.0], "125 ± 64"),
        ([2e7, 3e7], "2.5e+07 ± 6.353e+07"), ([1e-5, 3e-5], "2e−05 ± 0.0001271"), ([-0.5, -0.4], "−0.45 ± 0.64"),
        ([0.5], "0.5000"), ([1234.5], "1234.5"), ([0.25, 0.25], "0.2500 ± 0.0000"),
    ])  # fmt: skip
    def test_two_digits_of_the_interval(self, values, text):
        interval = t_interval(values)
        assert formats.plus_minus(interval, formats.decimals([interval])) == text

    def test_a_column_has_equal_decimals(self):
        wide, narrow = t_interval([0.5, 0.9]), t_interval([0.70, 0.71, 0.72])
        places = formats.decimals([wide, narrow, narrow])
        assert [formats.plus_minus(one, places) for one in (wide, narrow)] == ["0.700 ± 2.541", "0.710 ± 0.025"]

    def test_undefined(self):
        assert formats.plus_minus(None, 3) == "–"
        assert formats.probability(None) == "–"
        assert formats.amount("samples", None) == "–"

    def test_probabilities(self):
        assert [formats.probability(p) for p in (0.0, 0.0009, 0.001, 0.0499, 1.0)] == [
            "< 0.001", "< 0.001", "0.001", "0.050", "1.000",
        ]  # fmt: skip

    def test_budgets(self):
        assert formats.amount("samples", 12345.0) == "12,345"
        assert formats.amount("flops_estimate", 12345.0) == "1.23e+04"
        assert formats.amount("seconds", 1234.56) == "1,234.6"


def test_fewer_seeds_for_one_metric_are_said(sweep):
    for seed in range(3):
        sweep(str(seed), seed=seed, result={"summary": {"late": None if seed else 0.5}})
    assert "| 0.5000 (n = 1) |" in formats.as_markdown(compare(gather([sweep.path]), ["late"]))
