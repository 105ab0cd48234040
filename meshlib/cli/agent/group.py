"""The group of the agent's commands. A command's module is imported when it is called."""

from __future__ import annotations

from importlib import import_module

import click

from meshlib.cli.exits import EPILOG

#: name -> (module and its attribute, one line for --help)
_COMMANDS = {
    "approve": ("ask", "approve", "Let removals through that the guard holds back."),
    "cleanup": ("cleanup", "command", "Remove everything of ours from this node's kernel, and nothing else."),
    "compare": ("compare", "command", "Compare kube-proxy's live rules here with ours; reads only."),
    "explain": ("explain", "command", "Say who serves ADDRESS:PORT here, and why."),
    "handover": ("handover", "command", "Go from kube-proxy to meshlib on this node, or back, step by step."),
    "manifests": ("manifests", "command", "Print the DaemonSet with its rights and settings."),
    "pause": ("ask", "pause", "Stop writing; the rules stay as they are."),
    "plan": ("plan", "command", "Show what an agent would change here, and why; writes nothing."),
    "preflight": ("preflight", "command", "Check what this node offers and lacks, with the fix for each."),
    "prepare": ("prepare", "command", "Load modules and set kernel settings, once per boot; needs root."),
    "resume": ("ask", "resume", "Go on writing after a pause."),
    "run": ("run", "command", "Program this node with the Services of the cluster, until stopped."),
    "status": ("ask", "status", "Show what the running agent believes."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"meshlib.cli.agent.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in sorted(_COMMANDS.items())])


@click.group("agent", cls=_Lazy, epilog=EPILOG)
def command() -> None:
    """The node agent: gives programs that are not Python the same Services, through the node's kernel.

    \b
    Examples:
      meshlib agent preflight                  what does this node offer and lack?
      meshlib agent plan                       what would it change on this node?
      meshlib agent run --set mode=nftables    do it, until stopped; the rules stay
      meshlib agent status                     what does it believe?
      meshlib agent explain 10.96.0.1:443      who serves this, and why?
      meshlib agent cleanup                    take everything of ours away
    """
