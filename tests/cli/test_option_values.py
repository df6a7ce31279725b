"""Options, settings, codes, latents and texts that nobody should give: one line that says what, where and what next."""

import json
import os
import subprocess
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from seed_edge import manifest
from seed_edge.cli import cli
from seed_edge.commands import common
from seed_edge.commands.codes_input import (
    CODES_FILE_LIMIT,
    MAX_PROMPT,
    parse_codes,
    read_codes,
    read_latents,
    read_prompts,
)
from seed_edge.commands.config import options_by_name
from seed_edge.errors import CodesError, PromptError

LARGE = "9" * 5000


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("SEED_EDGE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments, **options):
        return CliRunner().invoke(cli, list(map(str, arguments)), **options)

    return call


def told(result, code, *words):
    """The one line of an error, without anything a terminal obeys."""
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit), (
        result.exc_info
    )
    assert result.exit_code == code, result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert line.isprintable() and all(word in line for word in words), line
    return line


# ---- options ----------------------------------------------------------------------------------------------------


def commands(group=cli, *names):
    for name, command in group.commands.items():
        yield from (
            commands(command, *names, name)
            if isinstance(command, click.Group)
            else [((*names, name), command)]
        )


OPTIONS = [
    (names, key, option) for names, command in commands() for key, option in options_by_name(command).items()
]
NUMBERS = [
    (names, key)
    for names, key, option in OPTIONS
    if isinstance(option.type, (click.types.IntParamType, click.types.FloatParamType, common.Bytes))
]


def test_every_numeric_option_is_covered():
    assert len(NUMBERS) >= 40 and {("caption",), ("draw",), ("chat",), ("train", "drawings")} <= {
        names for names, _ in NUMBERS
    }


@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "1e400", "-1", "0x10", "", "true", LARGE, "1" + "0" * 300], ids=repr
)
def test_numbers_out_of_range_are_usage_errors(run, value):
    for names, key in NUMBERS:
        result = run(*names, f"--{key}={value}")
        line = told(result, 2, f"--{key}")
        assert "Usage" in result.stderr and len(line) < 2200, (names, key)


@pytest.mark.parametrize(
    "size",
    ["0", "-5", "1e3", "1e400", "inf", "9G9", "1P", "9223372036854775808", "99999999999G", "٣G", "1_000"],
)
def test_a_memory_limit_is_a_positive_number_of_64_bits(run, size):
    told(run("caption", "x.png", "--memory-limit", size), 2, "--memory-limit")


def test_maximum_values_are_valid():
    assert common.SEED.convert(str(2**63 - 1), None, None) == 2**63 - 1
    assert common.Bytes().convert("9223372036854775807", None, None) > 2**62
    assert common.Bytes().convert("1.5 GiB", None, None) == 3 << 29
    assert common.TEMPERATURE.convert("100", None, None) == 100


def test_bounds_are_those_of_the_manifest():
    assert common.MAX_TEMPERATURE == manifest.MAX_TEMPERATURE and common.MAX_GUIDANCE == manifest.MAX_GUIDANCE


def test_seeds_that_exceed_64_bits_are_usage_errors(run, tiny):
    told(
        run("draw", "x", "-o", "x.png", "-n", 2, "--seed", 2**63 - 1, "--bundle", tiny),
        2,
        "exceeds 2**63 - 1",
    )


# ---- settings files ---------------------------------------------------------------------------------------------

WRONG = {
    "flag": ['"true"', "1", "0", "[]", "{ a = 1 }", "2020-01-01", '""', "nan"],
    "number": [
        '"many"',
        '""',
        "[1]",
        "{ a = 1 }",
        "true",
        "2020-01-01",
        "-1",
        str(2**63),
        "9" * 30,
        '"nan"',
        "12:30:00",
    ],
    "integer": ["1.5", "nan", "inf"],
    "text": ["1", "1.5", "true", "[]", '["a"]', "{ a = 1 }", "2020-01-01T00:00:00Z", '"a\\u0000b"'],
    "multiple": ["1", '"a"', "true", "[1]", "[[]]", "[true]", '["a\\u0000b"]', "{ a = 1 }"],
}


def kinds_of(option):
    if option.is_flag:
        return ["flag"]
    if option.multiple:
        return ["multiple"]
    if isinstance(option.type, click.types.FloatParamType):
        return ["number"]
    number = isinstance(option.type, (click.types.IntParamType, common.Bytes))
    return ["number", "integer"] if number else ["text"]


CASES = [
    (names, key, value)
    for names, key, option in OPTIONS
    for kind in kinds_of(option)
    for value in WRONG[kind]
]


def test_every_option_of_every_command_refuses_values_of_another_type(run, tmp_path):
    assert len(CASES) > 1000
    for number, (names, key, value) in enumerate(CASES):
        place = tmp_path / "s.toml"
        place.write_text(f"[{'.'.join(names)}]\n{key} = {value}\n")
        line = told(
            run("--config", place, "bundles", "path"), 2, "s.toml", f"[{'.'.join(names)}] {key}:", "expected "
        )
        assert len(line) < 1000, number


@pytest.mark.parametrize("key", ["seed", "bundle", "quiet", "json", "memory-limit", "data"])
@pytest.mark.parametrize("value", ["[[1]]", "2020-01-01", "{ a = 1 }", "nan"])
def test_top_level_values_are_checked(run, tmp_path, key, value):
    (tmp_path / "s.toml").write_text(f"{key} = {value}\n")
    code, word = (1, f"[{key}] is not a command") if value.startswith("{") else (2, f": {key}: ")
    told(run("--config", "s.toml", "bundles", "path"), code, "s.toml", word)


FILES = {
    "nothing": (b"\xff\xfe", "UTF-8"),
    "nul": (b"seed = 1\0", "TOML"),
    "deep array": (b"seed = " + b"[" * 20000, "TOML"),
    "deep table": (b"seed = " + b"{ a = " * 8000, "TOML"),
    "deep keys": (b"a." * 20000 + b"b = 1", ""),
    "many digits": (b"seed = " + b"9" * 5000, "TOML"),
    "odd date": (b"seed = 2020-13-45", "TOML"),
    "twice": (b"seed = 1\nseed = 2", "TOML"),
    "huge": (b"# " + b"x" * 200_000, "bytes"),
    "escapes": (b'"\\u001b[31mred" = 1', "\\x1b[31m"),
    "long key": (b"k" * 50_000 + b" = 1", "no command has an option"),
    "table array": (b"[[draw]]\nseed = 1", "no command has an option --draw"),
    "group": (b"[train]\nseed = 1", "[train] contains seed"),
    "value for a command": (b"draw = 3", "no command has an option --draw"),
    "image": (b"\x89PNG\r\n\x1a\n", ""),
}


@pytest.mark.parametrize("name", FILES)
def test_an_invalid_settings_file_is_a_one_line_error(run, tmp_path, name):
    data, words = FILES[name]
    (tmp_path / "s.toml").write_bytes(data)
    assert len(told(run("--config", "s.toml", "bundles", "path"), 1, "s.toml", words)) < 2200


@pytest.mark.parametrize("how", ["option", "variable", "place"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "socket link", "missing"])
def test_a_settings_path_that_is_not_a_regular_file_is_an_error(run, tmp_path, how, kind):
    place = tmp_path / "home" / "seed-edge.toml"
    place.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "socket link":
        place.symlink_to("/dev/zero")
    elif how == "place":
        return
    arguments = ["--config", place] if how == "option" else []
    env = {"SEED_EDGE_CONFIG": str(place)} if how == "variable" else {}
    told(run(*arguments, "bundles", "path", env=env), 1, "seed-edge.toml")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('device = "tpu"', "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        ('device = "\\u001b[31m"', "'\\x1b[31m' is not one of"),
    ],
)
def test_an_invalid_choice_names_the_settings_file(run, tmp_path, tiny, line, words):
    (tmp_path / "s.toml").write_text(f'[draw]\nbundle = "{tiny}"\n{line}\n')
    told(run("--config", "s.toml", "draw", "x", "-o", "x.png"), 2, "s.toml: ", words)


def test_a_byte_order_mark_and_windows_line_ends_are_read(run, tmp_path):
    (tmp_path / "s.toml").write_bytes(b"\xef\xbb\xbfseed = 3\r\n[draw]\r\nsize = 40\r\n")
    assert run("--config", "s.toml", "bundles", "path").exit_code == 0


# ---- codes and latents ------------------------------------------------------------------------------------------

NO_CODES = [
    "", " ", "--5", "-", "1 - 2", "+1", "1_000 2", "٣ ٤", "\uff11 \uff12", "1.5 2", "0x1", LARGE, f"1 {LARGE}", f"[{LARGE}]", f"-{LARGE}", "1e400", "[1e400]",
    "[1.0, 2.0]", "[true, false]", "[null]", "[[1, 2]]", '["1"]', "[NaN]", "[Infinity]", "[]", "{}", '{"codes": {}}', '{"codes": "1 2"}',
    '{"codes": [1], "codes": [2]}', "[" * 100_000, "[" * 200 + "1" + "]" * 200, '{"a":' * 100_000, "[1, 2", "[1] [2]", '{"codes": [1]}\n{"codes": [2]}',
    "\x00", "\ufeff\ufeff[1]", "nan", "null", str(2**64), f"[{2**64}]", f"[{-(2**63) - 1}]", "\x1b[31m", "\u202e1", "1,2,3",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_CODES, ids=lambda text: ascii(text[:20]))
def test_a_codes_file_without_codes_is_a_one_line_error(text):
    with pytest.raises(CodesError, match="holds no codes") as caught:
        parse_codes(text, "a\x1b[31m.json")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize("text", NO_CODES, ids=lambda text: ascii(text[:20]))
def test_decode_of_a_file_without_codes_is_a_one_line_error(run, tiny, tmp_path, text):
    (tmp_path / "codes").write_text(text, "utf-8")
    told(run("decode", "codes", "-o", "x.png", "--bundle", tiny), 1, "codes")
    told(run("decode", "-", "-o", "x.png", "--bundle", tiny, input=text), 1)


@pytest.mark.parametrize(
    "text", ["0 1 2", "0 1 2 9", "-1 0 0 0", "0 0 0 99999999999999999", "7", "[0, 1, 2, 8]"]
)
def test_codes_that_do_not_fit_the_bundle_are_one_line_errors(run, tiny, tmp_path, text):
    (tmp_path / "codes").write_text(text)
    told(run("decode", "codes", "-o", "x.png", "--bundle", tiny), 1)


@pytest.mark.parametrize(
    "text", ["0 1 2 3", "[0, 1, 2, 3]", '{"codes": [0, 1, 2, 3]}', " 0\n1\t2 3\n", "\ufeff[0, 1, 2, 3]"]
)
def test_codes_are_read_as_they_are_written(run, tiny, tmp_path, text):
    (tmp_path / "codes").write_text(text, "utf-8")
    assert parse_codes(read_codes("codes"), "codes") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "name", ["pipe", "pipe.npy", "folder", "folder.npy", "device", "device.npy", "none", "none.npy", "huge"]
)
def test_codes_are_read_only_from_regular_files(run, tiny, tmp_path, name):
    if name.startswith("pipe"):
        os.mkfifo(name)
    elif name.startswith("folder"):
        os.mkdir(name)
    elif name.startswith("device"):
        os.symlink("/dev/zero", name)
    elif name == "huge":
        with open(name, "wb") as file:
            file.truncate(CODES_FILE_LIMIT * 1000)
    told(run("decode", name, "-o", "x.png", "--bundle", tiny), 1, name)


def npy(array, change=lambda data: data, **options):
    def write(path):
        np.save(path, array, **options)
        path.write_bytes(change(path.read_bytes()))

    return write


def header(text):
    data = text.encode()
    return lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data)


def sparse(path):
    with open(path, "wb") as file:
        file.write(
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, 100000, 100000), }".ljust(
                127
            )
            + b"\n"
        )
        file.truncate(10**11)


GOOD = np.ones((1, 4, 8, 8), np.float32)
NO_LATENTS = {
    "object": npy(np.array([[[[None]]]], object), allow_pickle=True),
    "text": npy(np.full((1, 4, 8, 8), "x")),
    "complex": npy(GOOD.astype(complex)),
    "structured": npy(np.zeros((1, 4, 8, 8), [("a", "f4")])),
    "integers": npy(GOOD.astype(np.int64)),
    "booleans": npy(GOOD.astype(bool)),
    "long double": npy(GOOD.astype(np.longdouble)),
    "dates": npy(GOOD.astype(np.int64).astype("M8[s]")),
    "three dimensions": npy(GOOD[0]),
    "scalar": npy(np.float32(1)),
    "none": npy(GOOD[:0]),
    "many": npy(np.ones((100_000, 4, 2, 2), np.float16)),
    "not a number": npy(GOOD * np.nan),
    "infinite": npy(np.full_like(GOOD, np.inf)),
    "beyond fp32": npy(np.full(GOOD.shape, 1e300)),
    "cut": npy(GOOD, lambda data: data[:-1]),
    "more": npy(GOOD, lambda data: data + b"x"),
    "header cut": npy(GOOD, lambda data: data[:60]),
    "empty": lambda path: path.write_bytes(b""),
    "pickle": lambda path: path.write_bytes(b"\x80\x04N."),
    "archive": lambda path: path.write_bytes(b"PK\x03\x04" * 100),
    "huge": sparse,
    "huge header": lambda path: path.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{'descr': "),
    "negative": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, -8, 8), }\n"),
    "nested": header("{'descr': " + "(" * 3000 + "\n"),
    "code": header("{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': (1, 1, 1, 1), }\n"),
    "large sides": header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 99999999999999999999, 1, 1), }\n"
    ),
    "zero sides": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 0, 999999, 999999), }\n"),
}


@pytest.mark.parametrize("name", NO_LATENTS)
def test_a_file_without_latents_is_a_one_line_error(run, tiny, tmp_path, name):
    NO_LATENTS[name](tmp_path / "a.npy")
    with pytest.raises(CodesError, match=r"a\.npy cannot be read as latents") as caught:
        read_latents(tmp_path / "a.npy")
    assert str(caught.value).isprintable()
    told(run("decode", "a.npy", "-o", "x.png", "--bundle", tiny), 1, "a.npy")


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_latents_are_read_as_they_were_written(tmp_path, kind, order):
    wanted = np.arange(2 * 3 * 4, dtype=np.float32).reshape(1, 2, 3, 4)
    np.save(tmp_path / "a.npy", np.asarray(wanted, kind, order=order))
    found = read_latents(tmp_path / "a.npy")
    assert found.dtype == np.float32 and np.array_equal(found, wanted)


# ---- texts ------------------------------------------------------------------------------------------------------


def test_prompts_of_a_file(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa fox\r\n\r\n  a house \n\xec\x97\xac\xec\x9a\xb0")
    assert list(read_prompts(str(tmp_path / "p.txt"))) == ["a fox", "a house", "여우"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holds no prompts"),
        (b" \n\t\n", "holds no prompts"),
        (b"a fox\na \xff house", "line 2 cannot be read as text"),
        (b"\xff\xfea\0", "cannot be read as text"),
        (b"a\0b", "NUL"),
        (b"ok\n" + b"x" * (MAX_PROMPT + 1), "line 2 has"),
        (b"x\n" * (9 << 20), "is over"),
    ],
)
def test_invalid_prompt_files_are_one_line_errors(run, tiny, tmp_path, data, words):
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(PromptError, match=words):
        list(read_prompts("p.txt"))
    told(run("draw", "--prompts", "p.txt", "--bundle", tiny), 1, words)


@pytest.mark.parametrize("kind", ["pipe", "folder", "missing"])
def test_prompts_are_read_only_from_regular_files(run, tiny, tmp_path, kind):
    {"pipe": os.mkfifo, "folder": os.mkdir, "missing": lambda name: None}[kind]("p.txt")
    told(run("draw", "--prompts", "p.txt", "--bundle", tiny), 1, "p.txt cannot be read")


BAD = "a\udcff"
TEXTS = [
    ("draw", BAD), ("draw", "x", "--negative", BAD), ("edit", "x.png", BAD), ("ask", "x.png", BAD), ("caption", "x.png", "--prefix", BAD),
    ("caption", "x.png", "--append", BAD), ("export", "--out", "o", "--name", BAD), ("export", "--out", "o", "--license", BAD),
    ("train", "llm", "--codes", "c", "--out", "o", "--prompt", BAD),
]  # fmt: skip


@pytest.mark.parametrize("arguments", TEXTS, ids=lambda arguments: " ".join(arguments[:-1]))
def test_text_that_is_not_utf8_is_a_one_line_error(run, arguments):
    told(run(*arguments), 2, "not UTF-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ("caption", "a\x1b[31m.png"), ("encode", "a\u202e.png"), ("inspect", "a\n.png"), ("draw", "--from", "a\x1b[31m.png"), ("decode", "a\x07"),
        ("decode", "a\x1b[31m.npy"), ("bundles", "path", "a\x1b[31m"), ("bundles", "remove", "\x1b[31m"), ("--config", "\x1b[31m", "doctor"),
        ("--log-level", "\x1b[31m", "doctor"), ("--\x1b[31m",), ("\x1b[31m",), ("completion", "\x1b[31m"), ("chat", "-o", "\x1b[31m"),
        ("train", "tokenizer", "--data", "\x1b", "--out", "o", "--recipe", "\x1b[31m"), ("caption", "a\udcff.png"), ("bundles", "path", "x" * 5000),
    ],
    ids=ascii,
)  # fmt: skip
def test_messages_contain_no_control_characters(run, tiny, arguments):
    result = run(*arguments)
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert (
        all(line.isprintable() for line in result.stderr.splitlines())
        and len(result.stderr.strip().splitlines()) <= 4
    )


# ---- streams ----------------------------------------------------------------------------------------------------


def process(*arguments, encoding, **options):
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    return subprocess.run(
        [sys.executable, "-m", "seed_edge", *map(str, arguments)], env=env, capture_output=True, **options
    )


@pytest.mark.parametrize("encoding", ["cp1252", "cp949", "latin-1", "ascii", "utf-8", "utf-16"])
def test_output_is_valid_in_any_encoding_of_stdout(tiny, examples, encoding):
    words = [
        "caption",
        examples / "coffee.jpg",
        "--bundle",
        tiny,
        "-q",
        "--prefix",
        "여우 🦊 é ",
        "--device",
        "cpu",
    ]
    plain, as_json = process(*words, encoding=encoding), process(*words, "--json", encoding=encoding)
    assert plain.returncode == 0 and plain.stderr == b"", plain.stderr
    assert as_json.returncode == 0 and json.loads(as_json.stdout.decode(encoding))["caption"].startswith(
        "여우 🦊 é "
    )


def test_json_is_ascii_where_stdout_is_not_utf8(capsys, monkeypatch):
    class Latin:
        encoding = "latin-1"

    with pytest.MonkeyPatch.context() as patch:
        written = []
        patch.setattr(common.sys, "stdout", Latin())
        patch.setattr(common.click, "echo", written.append)
        common.print_json({"a": "é\udcff\x1b\u202e"})
    assert written[0].isascii() and json.loads(written[0]) == {"a": "é\udcff\x1b\u202e"}


@pytest.mark.parametrize("command", [("manual",), ("completion", "bash"), ("bundles", "list"), ("--help",)])
def test_a_closed_pipe_ends_the_command_quietly(command):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "seed_edge", *command], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert done.stderr == b""


def test_a_closed_stdout_gives_no_traceback():
    done = subprocess.run(
        f"'{sys.executable}' -m seed_edge manual >&-", shell=True, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="shells close streams otherwise there")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "arguments",
    ["caption -", "caption --stdin0", "decode - -o a.png", "draw --prompts -", "chat", "draw x -o b.png"],
)
def test_closed_standard_streams_give_no_traceback_and_their_descriptors_are_not_reused(
    tiny, tmp_path, arguments, closed
):
    command = f"{sys.executable} -m seed_edge {arguments} --bundle {tiny} {closed}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode in (0, 1, 2) and "Traceback" not in done.stderr + done.stdout
    if (tmp_path / "b.png").exists():
        with Image.open(tmp_path / "b.png") as image:
            image.load()
