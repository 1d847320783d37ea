"""The command line: what may stand on it, and what becomes of errors."""

from __future__ import annotations

import os
import sys
import traceback
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence

from squirrel_torch.cli.convert import convert
from squirrel_torch.cli.measure import MISSED, bench, profile
from squirrel_torch.cli.opening import SHARDS, key_value
from squirrel_torch.cli.output import complain
from squirrel_torch.cli.show import head, info, sample
from squirrel_torch.cli.verify import verify
from squirrel_torch.errors import SquirrelTorchError
from squirrel_torch.storage.formats import FORMATS
from squirrel_torch.storage.shards.manifest import MODES

__all__ = ["main"]

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: What stands behind its name; None is what the process was started with.

    Returns:
        The exit code: 0, or 1 if something is wrong with the data or with what was asked for; 3 if a pipeline is not as fast
        as was asked for. Wrong usage exits with 2.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read it has seen enough. What is still in the buffer must not raise when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        complain(f"{_NAME}: interrupted")
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last one who can say what is wrong
        if arguments.traceback:
            for line in "".join(traceback.format_exception(error)).splitlines():
                complain(line)
        complain(f"{_NAME} {arguments.command}: {_said(error)}")
        return 1
    return code


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, SquirrelTorchError | ValueError | FileNotFoundError | IndexError | ImportError) and text:
        return text
    return f"{type(error).__name__}: {text}"


# -- the parser -------------------------------------------------------------------------------------------------------

_NAME = "squirrel-torch"
_DOES = "Look at datasets, check them, convert into them; measure pipelines."
_EPILOG = """\
A URL is a folder, a file or a glob, local or on any filesystem that fsspec knows (s3://, gs://, https://, ...).
Values of --storage-option and --option are JSON where they can be, and text else:
  --storage-option anon=true --storage-option 'client_kwargs={"endpoint_url": "http://localhost:9000"}'
"""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog=_NAME, description=_DOES, epilog=_EPILOG)
    parser.formatter_class = RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    bare, common, reading = _bare(), _common(), _reading()

    def command(name: str, run: Callable[[Namespace], int], text: str, *parents: ArgumentParser) -> ArgumentParser:
        reads = name not in ("profile", "bench")
        made = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=_EPILOG if reads else None,
            parents=[common if reads else bare, *parents],
            formatter_class=RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

    _add_info(command("info", info, "what a dataset, or files of another format, consist of", reading))
    _add_head(command("head", head, "the first rows, or some by their numbers", reading))
    _add_sample(command("sample", sample, "random rows, the same for the same seed", reading))
    _add_verify(command("verify", verify, "check every byte and every row of a dataset in shards"))
    _add_convert(command("convert", convert, "write the samples of a source into a dataset in shards", reading))
    _add_profile(command("profile", profile, "run a pipeline, and say what limits it and what to change"))
    _add_bench(command("bench", bench, "run a pipeline, and say how many items a second come out of it"))
    return parser


def _bare() -> ArgumentParser:
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser


def _common() -> ArgumentParser:
    parser = ArgumentParser(add_help=False, parents=[_bare()])
    parser.add_argument(
        "--storage-option", type=key_value, action="append", metavar="KEY=VALUE", help="for the filesystem; may be repeated"
    )
    return parser


def _reading() -> ArgumentParser:
    parser = ArgumentParser(add_help=False)
    parser.add_argument(
        "--from",
        dest="format",
        choices=[SHARDS, *FORMATS],
        metavar="FORMAT",
        help=f"one of {', '.join([SHARDS, *FORMATS])}; by default it is seen in what is there",
    )
    parser.add_argument(
        "--option",
        type=key_value,
        action="append",
        metavar="KEY=VALUE",
        help="""for the reader of the format, such as columns='["x", "y"]' or types='{"label": "int"}'; may be repeated""",
    )
    parser.add_argument("--cache", metavar="DIR", help="a folder for copies of remote shards")
    return parser


def _add_info(parser: ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def _add_head(parser: ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("-n", dest="count", type=_at_least(0), default=5, metavar="N", help="how many (default: 5)")
    which.add_argument("--rows", type=_numbers, metavar="N,N,...", help="their numbers, from 0 on")
    parser.add_argument("--json", action="store_true", help="as one JSON object on each line; arrays and bytes are cut")


def _add_sample(parser: ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL")
    parser.add_argument("-n", dest="count", type=_at_least(0), default=10, metavar="N", help="how many (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: 0)")
    parser.add_argument("--json", action="store_true", help="as one JSON object on each line; arrays and bytes are cut")


def _add_verify(parser: ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL")
    _add_work(parser)


def _add_work(parser: ArgumentParser) -> None:
    parser.add_argument("--jobs", type=_at_least(1), metavar="N", help="processes (default: one for each processor)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar; there is none either without a terminal")


def _add_convert(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument("--mode", choices=MODES, default="create", help="what to do if there is a dataset (default: create)")
    parser.add_argument("--shard-bytes", default="64MB", metavar="BYTES", help="memory of a full shard (default: 64MB)")
    parser.add_argument("--shard-rows", type=_at_least(1), metavar="N", help="rows of a full shard")
    parser.add_argument("--compression", choices=["lz4", "zstd"], help="of the shards (default: none)")
    parser.add_argument("--resume", metavar="NAME", help="of the job: killed and started again, it goes on")
    for what in ("source", "target"):
        parser.add_argument(
            f"--{what}-option",
            type=key_value,
            action="append",
            metavar="KEY=VALUE",
            help=f"like --storage-option, which is for both, for the {what} alone",
        )
    _add_work(parser)


def _add_pipeline(parser: ArgumentParser, seconds: float) -> None:
    parser.add_argument("pipeline", metavar="PIPELINE", help="module:name or file.py:name; its code is run")
    parser.add_argument("-n", dest="count", type=_at_least(1), metavar="N", help="items to take (default: all)")
    parser.add_argument(
        "--seconds", type=_positive, default=seconds, metavar="S", help=f"after how long to stop (default: {seconds:g})"
    )
    parser.add_argument("--json", action="store_true", help="as JSON on one line")


def _add_profile(parser: ArgumentParser) -> None:
    _add_pipeline(parser, 10)
    parser.add_argument("--workers", type=_at_least(0), metavar="N", help="through a StreamLoader with so many workers")
    parser.add_argument("--save", metavar="FILE", help="the report, as .html, .svg, .json or .txt")
    parser.add_argument(
        "--most-gain",
        type=_positive,
        metavar="X",
        help=f"exit with {MISSED} if a change is expected to give more than X times the speed",
    )


def _add_bench(parser: ArgumentParser) -> None:
    _add_pipeline(parser, 5)
    parser.add_argument("--workers", type=_numbers, metavar="N,N,...", help="through StreamLoaders with so many workers")
    parser.add_argument("--rounds", type=_at_least(1), default=3, metavar="N", help="how often (default: 3)")
    parser.add_argument("--at-least", type=_positive, metavar="RATE", help=f"exit with {MISSED} if fewer items a second come")


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def _at_least(minimum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise ArgumentTypeError(f"must be a whole number of at least {minimum}, got {text!r}")
        return int(text)

    return number


def _numbers(text: str) -> list[int]:
    return [_at_least(0)(part.strip()) for part in text.split(",")]
