import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from seed_edge.cli import cli
from seed_edge.commands import shell
from seed_edge.commands.shell import page

MANUAL = Path(__file__).parent.parent.parent / "docs" / "seed-edge.1"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("SEED_EDGE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0, **options):
        result = CliRunner().invoke(cli, list(map(str, arguments)), **options)
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def config(tmp_path):
    return (tmp_path / "seed-edge.toml").write_text


# ---- defaults ---------------------------------------------------------------------------------------------------


def test_defaults_apply_to_all_commands_or_to_one(run, config, tiny, tmp_path):
    config(f'bundle = "{tiny}"\nseed = 3\n[draw]\nsize = 40\nquiet = true\n')
    told = run("draw", "a thing", "-o", "a.png")
    assert Image.open(tmp_path / "a.png").size == (40, 40) and told.stderr == ""
    assert json.loads(run("inspect", "a.png", "--json").stdout)["drawn"][0]["seed"] == 3
    run("draw", "a thing", "-o", "a.png", "--size", 20, "--seed", 4)
    assert Image.open(tmp_path / "a.png").size == (20, 20)
    assert json.loads(run("inspect", "a.png", "--json").stdout)["drawn"][0]["seed"] == 4


def test_the_settings_file_is_given_by_option_or_variable(run, tiny, tmp_path):
    (tmp_path / "other.toml").write_text(f'[draw]\nbundle = "{tiny}"\nseed = 1\nsize = 24\n')
    run("--config", "other.toml", "draw", "a thing", "-o", "a.png")
    run("draw", "a thing", "-o", "b.png", env={"SEED_EDGE_CONFIG": "other.toml"})
    assert Image.open(tmp_path / "a.png").size == Image.open(tmp_path / "b.png").size == (24, 24)


def test_diffusion_defaults_are_ignored_for_a_bundle_without_diffusion(run, config, tiny):
    config(f'[draw]\nbundle = "{tiny}"\nsteps = 30\nfast = true\n')
    run("draw", "a thing", "-o", "a.png")
    assert "draws in one pass" in run("draw", "a thing", "-o", "a.png", "--steps", 30, code=1).stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sed = 1", "no command has an option --sed; did you mean seed?"),
        ("[darw]\nseed = 1", "[darw] is not a command; did you mean draw?"),
        ("[draw]\nstep = 1", "[draw] has no option --step; did you mean steps?"),
        ("[train.lm]\nx = 1", "[train.lm] is not a command; did you mean llm?"),
        ("[draw\n", "cannot be read as TOML"),
        ("\x00", "cannot be read as TOML"),
    ],
)
def test_errors_of_a_settings_file_name_the_key(run, config, text, words):
    config(text)
    told = run("bundles", "path", code=1).stderr
    assert words in told and "seed-edge.toml" in told and len(told.strip().splitlines()) == 1


def test_a_value_of_the_wrong_type_exits_as_on_the_command_line(run, config):
    config('[draw]\nsize = "large"\n')
    assert "'large' is not a valid integer range" in run("draw", "x", code=2).stderr
    assert "cannot be read" in run("--config", "missing.toml", "bundles", "path", code=1).stderr


# ---- what is told -----------------------------------------------------------------------------------------------


def test_log_level_and_json(run, tiny, examples):
    arguments = ["caption", examples / "coffee.jpg", "--bundle", tiny, "-q"]
    assert run(*arguments).stderr == ""
    assert "opening encoder.onnx" in run("--log-level", "debug", *arguments).stderr
    told = [
        json.loads(line) for line in run("--log-level", "debug", "--log-json", *arguments).stderr.splitlines()
    ]
    assert {"time", "level", "message"} == set(told[0]) and told[0]["level"] == "debug"
    assert "is not one of 'debug', 'info'" in run("--log-level", "loud", *arguments, code=2).stderr


def test_prompts_and_names_of_images_are_not_logged_below_debug(run, tiny, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "secret-name.png")
    for command in (
        ["caption", "secret-name.png", "--out", "c.jsonl"],
        ["draw", "secret-name", "-o", "d.png", "--seed", 1],
    ):
        assert "secret-name" not in run("--log-level", "info", *command, "--bundle", tiny).stderr


# ---- shells -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_the_command(run, shell):
    assert "_SEED_EDGE_COMPLETE" in run("completion", shell).stdout
    assert "is not one of 'bash', 'zsh', 'fish'" in run("completion", "tcsh", code=2).stderr


def test_commands_options_and_bundles_are_completed(run, tiny):
    run("bundles", "add", tiny, "--name", "small")

    def completed(*words):
        env = {
            "_SEED_EDGE_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["seed-edge", *words]),
            "COMP_CWORD": str(len(words)),
        }
        return CliRunner().invoke(cli, [], prog_name="seed-edge", env=env).output

    assert "plain,caption" in completed("cap") and "plain,--sidecar" in completed("caption", "--sid")
    assert "plain,small" in completed("caption", "--bundle", "s")


def test_the_manual_page_is_that_of_the_commands(run):
    told = run("manual").stdout
    assert told == "\n".join(page(cli)) + "\n" == MANUAL.read_text(), (
        "write it anew: seed-edge manual > docs/seed-edge.1"
    )
    for words in (
        ".SS seed\\-edge draw [PROMPT]",
        "seed\\-edge train llm",
        ".SH EXIT STATUS",
        ".B SEED_EDGE_HOME",
    ):
        assert words in told


def test_an_interrupted_command_exits_with_130(run, monkeypatch):
    def interrupt(root):
        raise KeyboardInterrupt

    monkeypatch.setattr(shell, "page", interrupt)
    assert run("manual", code=130).stderr == "interrupted\n"
