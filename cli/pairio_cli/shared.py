"""What the commands share: how a group looks, common options, the node's API."""

from typing import Annotated, Any

import click
import typer
import typer.core

from pairio_cli import complete
from pairio_cli.output import data, fail, short

__all__ = [
    "Image",
    "JobId",
    "Json",
    "SecretOption",
    "Service",
    "ServiceOption",
    "add_version",
    "api",
    "new_typer",
    "part",
    "patient_api",
    "people",
    "seconds",
    "service_path",
]

Service = Annotated[
    str,
    typer.Argument(
        metavar="SERVICE", help="Name or id of the service.", autocompletion=complete.services
    ),
]
Image = Annotated[
    str | None,
    typer.Option(help="Container image: a docker-archive (FILE.tar), or one of the engine here."),
]
JobId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Id of the job, or the end of it.", autocompletion=complete.jobs
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SecretOption = Annotated[
    list[str] | None,
    typer.Option("--secret", help="NAME=@FILE or NAME=env:VARIABLE"),
]
ServiceOption = Annotated[
    str | None,
    typer.Option("--service", help="Name or id of the service.", autocompletion=complete.services),
]


def _keep_help_of_arguments() -> None:
    """Let arguments have their help, once: click 8.5 has got one of its own, to which typer 0.24
    hands nothing on (so it was lost), and a list of arguments of its own beside typer's."""
    make = typer.core.TyperArgument.__init__

    def make_with_help(self: typer.core.TyperArgument, **given: Any) -> None:
        make(self, **given)
        self.help = given.get("help")

    def no_second_list(*_: Any) -> None:
        return None

    setattr(typer.core.TyperArgument, "__init__", make_with_help)  # noqa: B010
    setattr(typer.core.TyperCommand, "format_arguments", no_second_list)  # noqa: B010


_keep_help_of_arguments()


def new_typer(help_text: str) -> typer.Typer:
    """Return a group of commands that looks like the others."""
    return typer.Typer(
        help=help_text, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
    )


def add_version(app: typer.Typer) -> None:
    """Give a program the option --version."""

    def show(asked: bool) -> None:
        if asked:
            from importlib.metadata import version

            data(f"pairio {version('pairio')}")
            raise typer.Exit()

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option("--version", callback=show, is_eager=True, help="Print the version."),
        ] = False,
    ) -> None:
        del version  # its callback has answered


def api() -> Any:
    """Return the API of the node on this machine; closed when the command ends."""
    from pairio._http import Api

    found = Api()
    click.get_current_context().call_on_close(found.close)
    return found


def patient_api() -> Any:
    """Return the API of the node on this machine for a command that waits: over a restart, too."""
    from pairio_cli.patient import PatientNode

    found = PatientNode()
    click.get_current_context().call_on_close(found.close)
    return found


def part(text: str) -> str:
    """Return text quoted as one part of a path."""
    from pairio._http import part as quoted

    return quoted(text)


def seconds(text: str | None) -> int | None:
    """Return the seconds that a text such as 30m, 12h or 7d means."""
    if text is None:
        return None
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    if unit is None or not text[:-1].isdecimal() or len(text) > 10 or int(text[:-1]) < 1:
        fail(f"--expires is {text!r}", "use a number and s, m, h or d: 30m, 12h, 7d", 2)
    return int(text[:-1]) * unit


def service_path(service: str, rest: str) -> str:
    """Return the path of something of a service."""
    return f"/api/v1/services/{part(service)}/{rest}"


def people(found: list[dict[str, Any]]) -> str:
    """Return peers as people read them: the member and the end of the key."""
    named = (f"{p['member'] or 'no member'} ({short(p['peerId'])})" for p in found)
    return ", ".join(named) or "nobody"
