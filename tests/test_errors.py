"""How a program ends: interrupted, with its output closed, on a terminal of few
letters."""

import os
import signal
import subprocess
import sys

import pytest

from conftest import REPOSITORY
from errors import run_command

PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
from errors import begin_program, run_command
begin_program()
{before}
def command():
    {command}
sys.exit(run_command(command))
"""
WAITS = "print('ready', flush=True); time.sleep(60)"


def begin(command: str, before: str = "", **environment: str) -> subprocess.Popen:
    program = PROGRAM.format(command=command, before=before)
    return subprocess.Popen(
        [sys.executable, "-c", program, str(REPOSITORY / "src")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("places", [("pass", WAITS), (WAITS, "")])
def test_an_interrupt_ends_a_program_at_any_time(places):
    with begin(*places) as program:
        program.stdout.readline()
        program.send_signal(signal.SIGINT)
        assert program.communicate()[1] == b"stopped\n"
    assert program.returncode == 130


@pytest.mark.parametrize(
    ("command", "status"),
    [("print('x\\n' * 10**6)", 141), ("print(time.sleep(1))", 141)],
)
def test_a_closed_output_is_no_error(command, status):
    with begin(command) as program:
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == status


def test_letters_that_a_terminal_lacks():
    command = "print('Zo\\xeb \\u674e \\udcff')"
    with begin(command, PYTHONIOENCODING="latin-1") as program:
        out, err = program.communicate()
    assert (out, err) == (b"Zo\xeb \\u674e \\udcff\n", b"")


@pytest.mark.parametrize("error", [OSError(36, "File name too long"), MemoryError()])
def test_errors_of_the_system_are_one_line(capsys, error):
    def fail() -> None:
        raise error

    assert run_command(fail) == 2
    assert capsys.readouterr().err.count("\n") == 1
