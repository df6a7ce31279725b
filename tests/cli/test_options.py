"""Spellings of options: aliases, choices, completion, and the exit code of wrong usage."""

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from seed_edge.cli import cli
from seed_edge.commands import common
from seed_edge.manifest import SCHEDULER_NAMES
from seed_edge.preprocess import FILTERS
from seed_edge.prompts import TEMPLATES
from seed_edge.runtime.onnx_session import DEVICES

ALIASES = {
    ("draw", "--tries"): "--best-of",
    ("bench", "--tries"): "--repeats",
    ("export", "--replace"): "--overwrite",
    ("bundles add", "--replace"): "--overwrite",
    ("draw", "--replace"): "--overwrite",
    ("caption", "--replace"): "--overwrite",
    ("export", "--licence"): "--license",
    ("train tokenizer", "--more"): "--decoder-data",
    ("train tokenizer", "--words"): "--bert-vocab",
    ("train llm", "--pictures"): "--preview-with",
    ("train llm", "--prompt"): "--preview-prompt",
    **{
        (name, "--out"): "--output"
        for name in (
            "caption",
            "export",
            "tokenize",
            *(f"train {each}" for each in ("drawings", "tokenizer", "llm", "merge", "unpack")),
        )
    },
}
"""Command and former spelling, and the spelling now."""


def command_of(words):
    command = cli
    for word in words.split():
        command = command.get_command(click.Context(command), word)
    return command


@pytest.mark.parametrize(("words", "alias"), list(ALIASES))
def test_hidden_aliases_set_the_same_option(words, alias):
    command = command_of(words)
    option = next(each for each in command.params if ALIASES[words, alias] in each.opts)
    value = [] if option.is_flag else ["7"]
    parsed, _, _ = command.make_parser(click.Context(command)).parse_args([alias, *value])
    assert parsed[option.name] in (True, "7", ["7"])
    with click.Context(command) as context:
        told = command.get_help(context)
    assert ALIASES[words, alias] in told and alias not in told.replace(ALIASES[words, alias], "").split()


@pytest.mark.parametrize(("words", "name"), [("bundles rm", "remove"), ("train start", "unpack")])
def test_commands_have_hidden_aliases(words, name):
    assert command_of(words).name == name
    group = command_of(words.split()[0])
    assert words.split()[1] not in group.list_commands(click.Context(group))


@pytest.mark.parametrize(
    ("words", "spelling", "name"),
    [
        ("draw", "-p", "prompt_option"), ("draw", "-s", "seed"), ("draw", "--negative-prompt", "negative"),
        ("draw", "--negative", "negative"), ("draw", "--cfg-scale", "guidance"), ("draw", "--guidance", "guidance"),
        ("caption", "-s", "seed"), ("edit", "-s", "seed"), ("chat", "-s", "seed"),
    ],
)  # fmt: skip
def test_option_names_of_other_programs_work(words, spelling, name):
    assert name in {option.name for option in command_of(words).params if spelling in option.opts}


def test_dash_p_draws_what_the_argument_draws(tmp_path, tiny):
    for name, words in (("a", ["a house"]), ("b", ["-p", "a house"])):
        told = CliRunner().invoke(
            cli, ["draw", *words, "-s", "1", "-o", str(tmp_path / f"{name}.png"), "--bundle", str(tiny)]
        )
        assert told.exit_code == 0, told.output
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("spelling", ["-V", "--version"])
def test_version(spelling):
    assert CliRunner().invoke(cli, [spelling]).output.startswith("seed-edge, version ")


def test_choices_are_those_of_the_modules_that_use_them():
    assert common.DEVICES == DEVICES and common.SCHEDULERS == SCHEDULER_NAMES
    assert set(common.RESIZE_FILTERS) == set(FILTERS) and set(common.PROMPT_TEMPLATES) == set(TEMPLATES)


@pytest.mark.parametrize(
    "words",
    [
        "draw", "draw a -p b", "draw a --device tpu", "draw a --scheduler x", "export", "export --output o --image-weights int3",
        "export --output o --template x", "tokenize --output o", "completion tcsh", "caption", "encode", "--log-level loud doctor",
        "caption a.png --overwrite",
    ],
)  # fmt: skip
def test_wrong_usage_has_exit_code_2(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, words.split()).exit_code == 2


@pytest.mark.parametrize(
    ("words", "incomplete", "wanted"),
    [
        ("draw --bundle", "m", {"mini"}), ("draw --device", "c", {"cpu", "cuda"}), ("draw --scheduler", "d", {"ddim", "dpm++"}),
        ("train llm --recipe", "mini-", {"mini-llm", "mini-talk", "mini-reward"}), ("bundles info", "mi", {"mini"}),
        ("export --weight-type", "q4", {"Q4_K_M"}), ("export --template", "v", {"vicuna"}), ("completion", "z", {"zsh"}),
    ],
)  # fmt: skip
def test_completion_offers_values(words, incomplete, wanted):
    found = ShellComplete(cli, {}, "seed-edge", "_SEED_EDGE_COMPLETE").get_completions(
        words.split(), incomplete
    )
    assert wanted <= {item.value for item in found}
