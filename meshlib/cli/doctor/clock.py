"""Doctor's look at time: our clock beside the API server's, and how long our token lives."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from meshlib.cli.doctor.findings import Finding, lack, note, ok

#: API servers forgive this much when they look at a token's times (the leeway of the JWT library they use), seconds.
LEEWAY = 60.0
#: Below this, seconds, a difference is no trouble to anybody.
NOTICEABLE = 3.0
#: Kubelet renews a token at 80 % of its life, of an hour or more: less than this means that nobody renews it, seconds.
SHORT = 300.0
_AREA = "clock"


def check_clock(date: str, sent: float, received: float) -> Iterable[Finding]:
    """``date``: the Date header of an answer, with the moments of our clock around it, Unix seconds.

    The header has whole seconds, and the answer its way: only what neither explains is a difference of clocks.
    """
    try:
        moment = parsedate_to_datetime(date)
        # RFC 9110 5.6.7: it is in GMT, whether it says so or not
        server = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError):
        yield note(_AREA, "the API server's answers have no Date, so clocks could not be compared")
        return
    ahead = max(0.0, sent - (server + 1)) or min(0.0, received - server)
    what = f"our clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the API server's"
    if abs(ahead) > LEEWAY:
        fix = "set the clocks: NTP (chrony, systemd-timesyncd) on this node and on the API server's"
        yield lack(_AREA, f"{what}: tokens and certificates may count as expired or not yet valid", fix)
    elif abs(ahead) > NOTICEABLE:
        yield note(_AREA, what)
    else:
        yield ok(_AREA, "our clock and the API server's agree")


def check_token(token: str, wall: float) -> Iterable[Finding]:
    """How long the bearer token lives, if it is one that says so."""
    claims = _claims(token)
    if claims is None:
        return
    expires, begins = claims.get("exp"), claims.get("nbf")
    if isinstance(begins, (int, float)) and begins - wall > LEEWAY:
        yield lack(_AREA, f"our token is valid only in {begins - wall:.0f} s", "set this node's clock")
    if not isinstance(expires, (int, float)):
        yield note(
            _AREA,
            "our token never expires (a legacy service account Secret)",
            "use the projected token that Kubernetes mounts by itself; delete the Secret",
        )
    elif expires <= wall:
        yield lack(
            _AREA,
            f"our token expired {wall - expires:.0f} s ago",
            "renew it: a projected token is renewed by the kubelet, so look whether the volume is mounted with subPath",
        )
    elif expires - wall < SHORT:
        yield note(_AREA, f"our token expires in {expires - wall:.0f} s; the file is read again every minute")
    else:
        yield ok(_AREA, f"our token is valid for {(expires - wall) / 60:.0f} min")


def _claims(token: str) -> dict[str, Any] | None:
    """The claims of a JWT, unverified: it is our own, and only its times are looked at. None: not a JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
