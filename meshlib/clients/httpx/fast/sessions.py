"""TLS sessions: when a connection may resume the session of an earlier one. Pure, no clock.

A resumed handshake looks at no certificate, the server's or ours. So a session counts for a while after the handshake
that did look, however often it was resumed since, and only while the context asks for what it asked for then.
"""

from __future__ import annotations

import ssl
from typing import Any, NamedTuple

#: Seconds: how late a certificate that expired, was revoked, or was renewed in the context (``load_cert_chain``)
#: may be noticed by new connections. Tickets alone would allow a week (RFC 8446 4.6.1). One full handshake for each
#: endpoint in this time is no cost.
SESSION_AGE = 300.0


class Check(NamedTuple):
    """A full handshake."""

    until: float  #: when its sessions end
    terms: tuple[ssl.VerifyMode, bool, ssl.VerifyFlags]  #: what it asked for


class Session(NamedTuple):
    """One for resumption."""

    ticket: Any  #: an ssl.SSLSession
    check: Check


def new_check(context: ssl.SSLContext, now: float) -> Check:
    return Check(now + SESSION_AGE, _terms(context))


def usable(session: Session | None, context: ssl.SSLContext, now: float) -> Session | None:
    """The session, unless it has to be a full handshake."""
    if session is None or now >= session.check.until or session.check.terms != _terms(context):
        return None
    return session


def _terms(context: ssl.SSLContext) -> tuple[ssl.VerifyMode, bool, ssl.VerifyFlags]:
    return context.verify_mode, context.check_hostname, context.verify_flags
