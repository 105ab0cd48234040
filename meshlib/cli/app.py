"""The command group. A command's module is imported when it is called, so that ``meshlib --help`` stays quick."""

from __future__ import annotations

from importlib import import_module

import click

from meshlib import __version__
from meshlib.cli.exits import EPILOG

#: name -> (module, one line for --help): written here so that the list of commands needs no imports.
_COMMANDS = {
    "agent": (
        "meshlib.cli.agent.group",
        "The node agent: the same Services for programs that are not Python.",
    ),
    "cost": (
        "meshlib.cli.cost",
        "Say what a roll-out costs: watches, connections, memory; before it happens.",
    ),
    "check-url": ("meshlib.cli.check_url", "Say what would happen to requests to a URL, and why."),
    "demo": ("meshlib.cli.demo.command", "Watch load balancing on real local servers; needs no cluster."),
    "doctor": (
        "meshlib.cli.doctor.command",
        "Check what this environment offers, with the fix for what it lacks.",
    ),
    "rbac": ("meshlib.cli.rbac", "Print the Roles, RoleBindings and NetworkPolicy that a client needs."),
    "run": ("meshlib.cli.run", "Run a program whose clients balance mesh targets, without changing it."),
    "resolve": ("meshlib.cli.resolve", "Show who may receive traffic for a target, who may not, and why."),
    "top": ("meshlib.cli.top", "Watch what running programs do: requests per second, live."),
    "status": ("meshlib.cli.status.command", "Show what running programs believe, and how they do."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])


@click.group(
    cls=_Lazy,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, "-V", "--version", prog_name="meshlib", message="%(prog)s %(version)s")
def meshlib() -> None:
    """The service mesh that is a Python import: look at it, check it, try it.

    \b
    Examples:
      meshlib demo                                      watch it work, without a cluster
      meshlib doctor                                    what does this environment offer?
      meshlib resolve k8s:///orders.shop:http           who gets traffic, and why
      meshlib check-url http://orders.shop.svc/items    what would happen to this request?
      meshlib run -- python app.py                      have it happen
    """
