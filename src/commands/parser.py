"""The command line of `voices.py`.

arguments -> `parse` -> options -> `main` -> exit status

This module loads nothing slow, so `--help` and a mistyped option are answered at once.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from command_lines import DEVICES
from errors import run_command

PEOPLE = "a folder with a folder for each person, or NAME=file,file"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of `voices.py` and return its exit status.

    It is 0 whatever the verdict, 2 after a user's mistake or without any verdict, and
    130 if it was stopped.
    """
    options = parse(arguments)
    from commands.voices_commands import COMMANDS  # loads torch

    return run_command(lambda: COMMANDS[options.command](options))


def _channel(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {text!r}")
    return int(text)


def _add_command(
    commands: Any, name: str, about: str, *shared: str
) -> argparse.ArgumentParser:
    """Add a command with those options that it shares with others."""
    command = commands.add_parser(name, help=about, description=about)
    if "checkpoint" in shared:
        command.add_argument(
            "--checkpoint",
            type=Path,
            metavar="RUN_OR_FILE",
            help="a run, checkpoint or .nemo file instead of init/titanet-s.pt",
        )
        command.add_argument(
            "--device", choices=DEVICES, default="auto", help="compute on this"
        )
    if "store" in shared:
        command.add_argument("--store", type=Path, required=True, metavar="people.npz")
    if "channel" in shared:
        command.add_argument(
            "--channel",
            type=_channel,
            metavar="N",
            help="listen to this channel, counted from 0, of files with several",
        )
    if "json" in shared:
        command.add_argument("--json", action="store_true", help="print JSON")
    return command


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return `command` and its options; without `--checkpoint` that is None."""
    parser = argparse.ArgumentParser(
        prog="src/voices.py", description="Whose voice is this?"
    )
    parser.set_defaults(channel=None)
    commands = parser.add_subparsers(dest="command", required=True)
    add = partial(_add_command, commands)
    command = add(
        "compare", "are recordings of one person?", "checkpoint", "channel", "json"
    )
    command.add_argument("sounds", nargs="+", metavar="a.wav")
    listening = "checkpoint", "channel", "store", "json"
    command = add("enrol", "learn voices", *listening)
    command.add_argument("people", nargs="+", metavar="PEOPLE", help=PEOPLE)
    command = add("identify", "whose voice is this?", *listening)
    command.add_argument("sounds", nargs="+", metavar="x.wav")
    command = add("who", "which enrolled person speaks when?", *listening)
    command.add_argument("sound", type=Path, metavar="MEETING.wav")
    command.add_argument(
        "--rttm", type=Path, metavar="out.rttm", help="write the turns as RTTM"
    )
    command.add_argument(
        "--picture", type=Path, metavar="out.png", help="draw the turns"
    )
    command = add("forget", "remove a person", "store")
    command.add_argument("name", metavar="NAME")
    about = "find a threshold for your recordings"
    command = add("calibrate", about, "checkpoint", "channel", "json")
    command.add_argument("people", nargs="+", metavar="PEOPLE", help=PEOPLE)
    command.add_argument(
        "target", type=Path, metavar="mine.pt", help="the encoder and its new threshold"
    )
    command = add("demo", "a page in the browser", "checkpoint")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on")
    about = "vectors of all recordings"
    command = add("embed", about, "checkpoint", "channel", "json")
    command.add_argument("folder", type=Path, metavar="FOLDER")
    command.add_argument("out", type=Path, metavar="out.npz|out.parquet")
    command = add("export", "the encoder as ONNX", "checkpoint")
    command.add_argument("out", type=Path, metavar="model.onnx")
    command.add_argument(
        "--check",
        type=Path,
        metavar="FOLDER",
        help="compare with torch on these recordings, not on a synthetic voice",
    )
    return parser.parse_args(arguments)
