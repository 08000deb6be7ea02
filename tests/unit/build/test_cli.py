# SPDX-License-Identifier: Apache-2.0
"""The `qam` command finds, lists and runs subcommands, and helps with mistyped ones."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from qam_ros import cli
from qam_ros.contract.errors import ConfigError


@pytest.fixture
def group(monkeypatch):
    """Function that replaces the entry-point group by given `name = module:function` pairs."""

    def replace(**targets: str) -> None:
        found = {n: EntryPoint(n, t, "qam.commands") for n, t in targets.items()}
        monkeypatch.setattr(cli, "commands", lambda: found)

    return replace


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Function that makes an importable module from a text."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)

    return write


def test_a_subcommand_gets_the_remaining_words_and_its_code_is_returned(group, module):
    module("fake_count", "def command(argv):\n    return len(argv)\n")
    group(count="fake_count:command")
    assert cli.main(["count", "a", "b", "c"]) == 3


def test_a_mistyped_subcommand_names_the_nearest(group, capsys):
    group(train="nowhere:command", up="nowhere:command")
    assert cli.main(["trian"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "qam trian: no such command; did you mean 'train'? valid: bench, train, up\n"
    )


def test_the_overview_shows_help_without_importing_the_command(group, module, capsys):
    module(
        "fake_heavy",
        'raise RuntimeError\ndef command(argv):\n    """Do much.\n\n    More.\n    """\n',
    )
    group(heavy="fake_heavy:command")
    assert cli.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  heavy  Do much." in lines
    assert any(line.startswith("  bench  ") for line in lines)


def test_a_missing_dependency_is_named_with_the_way_to_get_it(group, module, capsys):
    module("fake_torchless", "import torch_that_is_absent\n")
    group(train="fake_torchless:command")
    assert cli.main(["train"]) == 2
    assert "needs the package 'torch_that_is_absent'" in capsys.readouterr().err


def test_an_error_of_a_user_is_one_line_and_code_2(group, module, capsys):
    module(
        "fake_error",
        "from qam_ros.contract.errors import ConfigError\n"
        "def command(argv):\n    raise ConfigError('expected a, found b')\n",
    )
    group(fail="fake_error:command")
    assert cli.main(["fail"]) == 2
    assert capsys.readouterr().err == "qam fail: expected a, found b\n"


def test_bench_runs_a_script_with_its_arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "BENCHMARKS", tmp_path)
    (tmp_path / "stream.py").write_text(
        'import sys\nif __name__ == "__main__":\n    sys.exit(len(sys.argv))\n'
    )
    (tmp_path / "helper.py").write_text("X = 1\n")
    assert cli.bench(["stream", "--rows", "5"]) == 3
    with pytest.raises(ConfigError, match=r"did you mean 'stream'\? valid: stream$"):
        cli.bench(["steam"])


def test_bench_outside_a_checkout_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "BENCHMARKS", tmp_path / "absent")
    with pytest.raises(ConfigError, match="benchmarks are part of a checkout"):
        cli.bench(["train"])


def test_every_declared_subcommand_of_this_installation_has_help():
    lines = {name: cli.first_line(entry) for name, entry in cli.commands().items()}
    assert {
        "up",
        "data",
        "train",
        "finetune",
        "eval",
        "export",
        "demo",
        "parity",
    } <= set(lines)
    assert all(
        line and not line.startswith("(not installed") for line in lines.values()
    ), lines


def test_the_command_line_itself_lists_the_subcommands():
    command = [
        sys.executable,
        "-c",
        "from qam_ros.cli import main; raise SystemExit(main())",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "  up " in result.stdout
