"""What all commands share: the application, and errors in one line."""

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
    """What the user can mend is said in one line on standard error, with exit code 2."""
    try:
        yield
    except (ValueError, TypeError) as error:
        problem = " ".join(str(error).split())
    except OSError as error:  # scans that cannot be read are among the above
        problem = f"{error.filename or 'writing'}: {error.strerror or error}"
    else:
        return
    print(f"attn3d {command}: {problem}", file=sys.stderr)
    raise typer.Exit(2)
