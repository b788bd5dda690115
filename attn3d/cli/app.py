"""What all commands share: the application, and errors in one line."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Attention for 3-D medical-image networks.",
    pretty_exceptions_enable=False,
)


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """What the user can mend is said in one line on standard error, with exit code 2; what he stops, with 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        yield
    except (ValueError, TypeError) as error:
        problem, code = " ".join(str(error).split()), 2
    except OSError as error:  # scans that cannot be read are among the above
        problem, code = f"{error.filename or 'writing'}: {error.strerror or error}", 2
    except KeyboardInterrupt as stopped:
        problem, code = str(stopped) or "stopped; nothing was written in half", 130
    else:
        return
    print(f"attn3d {command}: {problem}", file=sys.stderr)
    raise typer.Exit(code)
