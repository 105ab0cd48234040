"""What is found on the node, client by client and frontend by frontend: the table that backends are compared by."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from meshlib.agent.desired import Action, Desired, FrontendKey
from tests.kernel.lab.expected import Client, Expected, reachability
from tests.kernel.lab.lab import MANY, Lab
from tests.kernel.lab.prober import PATIENCE, SILENCE, Answered

#: By client and frontend: who answers, and what each endpoint saw; or how it fails.
Table = dict[tuple[str, str], object]
#: Cells of silence that are looked at together. The others are not: of two clients that take turns at a round robin of
#: two endpoints each would always meet the same one.
_AT_ONCE = 8


def observed(lab: Lab, desired: Desired, *, refuses: bool = True) -> Table:
    """What is found. The model is asked for how many endpoints to wait for, and where to wait long: nothing else.
    ``refuses`` False: what should be refused may as well be silent."""
    waits = {Action.FORWARD, Action.REJECT} if refuses else {Action.FORWARD}
    cells = [
        (client, key, expected)
        for client in lab.clients(desired.place.family)
        for key, expected in reachability(desired, client).items()
    ]
    loud = [cell for cell in cells if cell[2].action in waits]
    quiet = [cell for cell in cells if cell[2].action not in waits]
    found = [_cell(lab, desired, PATIENCE, *cell) for cell in loud]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found += pool.map(lambda cell: _cell(lab, desired, SILENCE, *cell), quiet)
    together = zip((*loud, *quiet), found, strict=True)
    return {(client.space, str(key)): seen for (client, key, _), seen in together}


def _cell(
    lab: Lab, desired: Desired, patience: float, client: Client, key: FrontendKey, expected: Expected
) -> object:
    own = (client.address, *(desired.place.node_addresses if client.is_node else ()))
    seen: set[tuple[str, int, str]] = set()
    for _ in range(MANY):
        outcome = lab.probe(client.space, key.address, key.port, key.protocol, patience=patience)
        if not isinstance(outcome, Answered):
            # A datagram of the node's own that is refused or dropped looks alike to its sender.
            return "lost" if client.is_node and key.protocol == "UDP" else outcome
        seen.add((outcome.endpoint, outcome.port, "client" if outcome.source in own else outcome.source))
        if len({each[:2] for each in seen}) >= len(expected.endpoints):
            break
    return frozenset(seen)
