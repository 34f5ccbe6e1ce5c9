"""Tiny Shakespeare: a made play for what is done with a text, the real one for the facts."""

import hashlib
import re
from dataclasses import replace

import pytest
import torch

from advml.compose import compose
from advml.config import bind
from advml.contracts import Classes, Spec
from advml.data import files
from advml.data.shakespeare import VOCABULARY, Shakespeare, ShakespeareSettings, by_role, encode, sequences
from advml.errors import AdvmlError, ConfigError
from advml.runner.fit import check_fit
from advml.runner.run import load_view

PLAY = """First Witch:
When shall we three meet again
In thunder, lightning, or in rain?

Second Witch:
When the hurlyburly's done:
When the battle's lost and won.

SECOND  WITCH:

Third Witch:
That will be ere the set of sun.


First Witch:
Where the place?
"""
FIRST = "When shall we three meet again\nIn thunder, lightning, or in rain?\nWhere the place?\n"
SECOND = "When the hurlyburly's done:\nWhen the battle's lost and won.\n"
THIRD = "That will be ere the set of sun.\n"


def decode(tokens):
    return "".join(VOCABULARY[int(token)] for token in tokens)


@pytest.fixture
def made(split_values):
    def make(**changes):
        values = {**split_values, "length": 10, "stride": 3, "least_characters": 0, **changes}
        return Shakespeare(ShakespeareSettings(**values))

    return make


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """A folder in which the made play is the official one."""
    content = PLAY.encode()
    official = replace(Shakespeare.files[0], sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    monkeypatch.setattr(Shakespeare, "files", (official,))
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "input.txt").write_bytes(content)
    return tmp_path


def test_the_shape_is_known_without_a_file(made):
    assert made(length=80).spec() == Spec({"text": (80,)}, Classes(65), tokens={"text": 65})
    assert made(length=80).spec() != Spec({"text": (80,)}, Classes(65))


def test_the_vocabulary_is_in_order_and_encoded_by_its_places():
    assert list(VOCABULARY) == sorted(set(VOCABULARY))
    assert encode(VOCABULARY).tolist() == list(range(65))
    assert decode(encode(PLAY)) == PLAY
    assert encode("").shape == (0,)


def test_a_role_s_speeches_are_put_together():
    assert by_role(PLAY) == {"FIRST WITCH": FIRST, "SECOND WITCH": SECOND, "THIRD WITCH": THIRD}


def test_a_line_that_ends_in_a_colon_is_no_role_within_a_speech():
    assert by_role("A:\nhe said:\nno\n\nB:\nyes\n") == {"A": "he said:\nno\n", "B": "yes\n"}


@pytest.mark.parametrize(("length", "stride"), [(4, 1), (4, 4), (5, 2), (3, 7), (80, 1)])
def test_sequences_are_windows_and_what_follows(length, stride):
    texts = ["abcdefghijklm", "", "nop", "qrstuvwxyzABC"]
    made = sequences([encode(text) for text in texts], length, stride)
    expected = [
        (text[start : start + length], text[start + length], role)
        for role, text in enumerate(texts)
        for start in range(0, len(text) - length, stride)
    ]
    found = [
        (decode(text), decode([following]), int(role))
        for text, following, role in zip(made.text, made.following, made.role, strict=True)
    ]
    assert found == expected
    assert made.text.shape == (len(expected), length)
    assert (made.text.dtype, made.following.dtype, made.role.dtype) == (torch.uint8, torch.int64, torch.int64)


@pytest.mark.parametrize("test", [0.0, 0.3])
def test_the_last_part_of_each_role_is_for_testing(data_dir, made, make_source, test):
    source, notes = make_source(data_dir)
    loaded = made(test=test).load(source)
    assert notes == []
    for role, text in enumerate((FIRST, SECOND, THIRD)):
        end = len(text) - round(test * len(text))
        for part, said in ((loaded.examples, text[:end]), (loaded.test, text[end:])):
            mine = (part.group == role).nonzero().flatten()
            assert len(mine) == len(range(0, len(said) - 10, 3))
            for number, index in enumerate(mine):
                assert decode(part.inputs["text"][index]) == said[3 * number : 3 * number + 10]
                assert decode([part.target[index]]) == said[3 * number + 10]
    assert loaded.record == {"roles": ["FIRST WITCH", "SECOND WITCH", "THIRD WITCH"], "vocabulary": VOCABULARY}
    assert (len(loaded.test) == 0) == (test == 0)


def test_roles_that_say_little_are_left_out(data_dir, made, make_source):
    loaded = made(least_characters=len(SECOND)).load(make_source(data_dir)[0])
    assert loaded.record["roles"] == ["FIRST WITCH", "SECOND WITCH"]
    assert loaded.examples.group.unique().tolist() == [0, 1]


@pytest.mark.parametrize("changes", [{"length": 90}, {"least_characters": 1000}])
def test_a_length_that_nobody_reaches_is_refused(data_dir, made, make_source, changes):
    with pytest.raises(ConfigError, match=r"^dataset.length=\d+: no role says so much"):
        made(**changes).load(make_source(data_dir)[0])


def test_other_ends_of_lines_are_the_same_text(data_dir, made, make_source):
    expected = made().load(make_source(data_dir)[0])
    path = data_dir / "shakespeare" / "input.txt"
    path.write_bytes(PLAY.replace("\n", "\r\n").encode())
    source, notes = make_source(data_dir)
    loaded = made().load(source)
    assert torch.equal(loaded.examples.inputs["text"], expected.examples.inputs["text"])
    assert loaded.files == {"input.txt": hashlib.sha256(path.read_bytes()).hexdigest()}
    (note,) = notes
    assert "has not the official checksum" in note
    assert "its lines end otherwise" in note
    assert [state.state for state in files.inspect(Shakespeare, data_dir)] == ["accepted"]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda text: text[:-20], f"it has {len(PLAY) - 20} characters, the official text {len(PLAY)}"),
        (lambda text: text.replace("rain", "sun!"), "is not the right file: its text differs"),
        (lambda text: "", "is not the right file: it has 0 characters"),
        (lambda text: "Žofie:\nno\n", "is not the right file"),
    ],
)
def test_another_text_is_one_line_with_the_remedy(data_dir, made, make_source, spoil, fault):
    (data_dir / "shakespeare" / "input.txt").write_bytes(spoil(PLAY).encode())
    with pytest.raises(AdvmlError) as caught:
        made().load(make_source(data_dir)[0])
    message = str(caught.value)
    assert message.startswith("shakespeare: ")
    assert fault in message
    assert "advml data download shakespeare" in message
    assert "\n" not in message
    assert [state.state for state in files.inspect(Shakespeare, data_dir)] == ["damaged"]


def test_a_missing_file_is_one_line_with_the_remedy(tmp_path, made, make_source):
    with pytest.raises(AdvmlError, match=r"^shakespeare: input.txt is not in .*advml data download shakespeare"):
        made().load(make_source(tmp_path)[0])


# --- who can read it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp", "linear", "cnn", "conv4"])
def test_models_of_numbers_are_refused(model):
    with pytest.raises(ConfigError) as caught:
        check_fit(bind(compose(["dataset=shakespeare", f"model={model}"])[0]))
    assert str(caught.value) == (
        f"model={model}: reads numbers, but dataset=shakespeare gives text as tokens; use model=char_lstm"
    )


def test_a_model_of_tokens_is_refused_numbers():
    check_fit(bind(compose(["dataset=shakespeare", "model=char_lstm"])[0]))
    with pytest.raises(ConfigError, match=r"model=char_lstm: needs one input of tokens.* gives image \[1, 8, 8\]"):
        check_fit(bind(compose(["dataset=digits", "model=char_lstm"])[0]))


def test_a_stream_of_text_is_a_stream_of_tokens():
    bound = bind(compose(["dataset=shakespeare", "model=char_lstm", "method=finetune"])[0])
    check_fit(bound)
    spec = bound.dataset.cls(bound.dataset.settings).spec()
    assert bound.view.cls.view_spec(spec, bound.view.settings).tokens == {"text": 65}


# --- the real file ------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_shakespeare_is_shakespeare(real_data, split_values, make_source):
    folder = real_data("shakespeare").parent
    values = {**split_values, "length": 80, "stride": 10, "least_characters": 0}
    source, notes = make_source(folder)
    loaded = Shakespeare(ShakespeareSettings(**values)).load(source)
    assert notes == []
    play = (folder / "shakespeare" / "input.txt").read_text()
    assert sorted(set(play)) == list(VOCABULARY)
    roles = by_role(play)
    assert set(roles) == {" ".join(name.upper().split()) for name in re.findall(r"(?:\A|(?<=\n\n))(.+):\n", play)}
    assert len(roles) == 302
    assert sum(len(text) >= 2000 for text in roles.values()) == 100
    # Nothing is lost but names, and the empty lines between speeches: every line of the file is one or the other.
    lines = [line for line in play.split("\n") if line]
    spoken = [line for text in roles.values() for line in text.split("\n") if line]
    named = [line for line in lines if line.endswith(":") and " ".join(line[:-1].upper().split()) in roles]
    assert len(spoken) + len(named) == len(lines)
    assert roles["ROMEO"].startswith("Is the day so young?")
    assert len(loaded.examples) == sum(
        len(range(0, len(text) - round(0.2 * len(text)) - 80, 10)) for text in roles.values()
    )
    assert loaded.examples.target.max() == 64


@pytest.mark.real_data
def test_roles_are_clients(real_data):
    words = ["dataset=shakespeare", "model=char_lstm", "view=clients_groups", "dataset.limit=8000"]
    bound = bind(compose([*words, f"data_dir={real_data('shakespeare').parent}"])[0])
    view = load_view(bound, pytest.fail)
    assert len(view) > 100
    for client in (0, len(view) - 1):
        assert len(view.train.group[view.owned[client]].unique()) == 1
    batch = view.batch([0, 1], torch.stack([view.owned[0][:2], view.owned[1][:2]]))
    assert batch.inputs["text"].shape == (2, 2, 80)
    assert not batch.inputs["text"].is_floating_point()
