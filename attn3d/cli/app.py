"""The application that all commands share, and its one-line error messages."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from attn3d.segmentation.errors import ProcessLost, ReportedByFirst

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Attention for 3-D medical-image networks.",
    pretty_exceptions_enable=False,
)


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Prints a user's error in one line on standard error, with exit code 2, or 130 for an interrupt."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be valid text
    try:
        yield
    except ReportedByFirst as error:
        raise typer.Exit(2) from error
    except (ValueError, TypeError, ProcessLost) as error:
        problem, code = " ".join(str(error).split()), 2
    except (FileExistsError, NotADirectoryError) as error:
        problem, code = f"{error.filename}: it or its parent is a file; give a folder", 2
    except OSError as error:  # unreadable scans are a ValueError
        problem, code = f"{error.filename or 'writing'}: {error.strerror or error}", 2
    except KeyboardInterrupt as stopped:
        problem, code = str(stopped) or "stopped; all files that were written are complete", 130
    else:
        return
    print(f"attn3d {command}: {problem}", file=sys.stderr)
    raise typer.Exit(code)
