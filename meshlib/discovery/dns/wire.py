"""Bytes to Answers and back, on dnspython's message codec. No IO; importing this module imports dnspython."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import replace

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from meshlib.discovery.dns.records import Answer, Kind, Question, RecordType, SrvRecord

#: The largest UDP reply that no path fragments in practice (DNS flag day 2020; CoreDNS's bufsize default).
EDNS_PAYLOAD = 1232
#: RFC 1034 asks to follow chains but not loops; resolvers in the field stop between 8 and 16 links.
MAX_CHAIN = 16
#: RFC 2181 section 8: a TTL is a 31-bit number; a larger one is to be read as 0.
MAX_TTL = 2**31 - 1

#: Replies with at least this many records are read directly; below it dnspython takes under half a millisecond.
MANY = 20

_IN = dns.rdataclass.IN
#: QR, opcode, TC and rcode of the header, and their value in a whole, good reply to a query.
_DECISIVE, _REPLY = 0xFA0F, 0x8000
_TO_QUESTION = 0xC00C  # a compressed name: pointer to the question's, right after the header
_RECORDS = {RecordType.A: struct.Struct("!HHHIH4s"), RecordType.AAAA: struct.Struct("!HHHIH16s")}


class Truncated(Exception):
    """The TC bit is set: the reply is partial, whatever it holds, and must be asked for over TCP (R6)."""


class Mismatch(Exception):
    """The bytes are no reply to this query: forged, late or garbled. Over UDP: wait for the real one (R8)."""


def query(question: Question, edns: bool) -> dns.message.QueryMessage:
    """A recursive query with a fresh random id; with ``edns`` it offers a 1232-byte buffer."""
    name = dns.name.from_text(question.name + ".")
    rdtype = dns.rdatatype.RdataType(question.type.value)
    if edns:
        return dns.message.make_query(name, rdtype, use_edns=0, payload=EDNS_PAYLOAD)
    return dns.message.make_query(name, rdtype)


def decode(wire: bytes, sent: dns.message.QueryMessage, question: Question, server: str) -> Answer:
    """Decode the reply to ``sent``. Raises Truncated or Mismatch; everything else becomes an Answer."""
    answer = _many(wire, sent, question, server)
    if answer is not None:
        return answer
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True)
    except Exception as error:  # dnspython raises many types on garbage, its own and builtin ones
        raise Mismatch(f"undecodable reply of {len(wire)} bytes: {type(error).__name__}") from error
    if not sent.is_response(message):
        raise Mismatch("the reply does not belong to the query (id, question or opcode differ)")
    if message.flags & dns.flags.TC:
        raise Truncated
    return interpret(message, question, server)


def _many(wire: bytes, sent: dns.message.QueryMessage, question: Question, server: str) -> Answer | None:
    """A long, plain A or AAAA reply read directly; None for every other, which dnspython reads.

    Plain: NOERROR, whole, the question as sent, and only records of the question's own name (RFC 1035 4.1.4: a pointer
    to offset 12) and type. A thousand records take dnspython 24 ms at each refresh, on the loop of all targets.
    """
    record = _RECORDS.get(question.type)
    if record is None or len(wire) < 12:
        return None
    ident, flags, questions, count, _, _ = struct.unpack_from("!6H", wire)
    asked = (sent.question[0].name.to_wire() or b"") + struct.pack("!HH", question.type.value, _IN)
    start = 12 + len(asked)
    end = start + count * record.size
    if (
        (ident, flags & _DECISIVE, questions) != (sent.id, _REPLY, 1)
        or count < MANY
        or end > len(wire)
        or wire[12:start] != asked
    ):
        return None
    expected = (_TO_QUESTION, question.type.value, int(_IN), record.size - 12)
    found: set[bytes] = set()
    least = MAX_TTL
    for name, kind, cls, ttl, length, address in record.iter_unpack(wire[start:end]):
        if (name, kind, cls, length) != expected:
            return None
        least = _minimum(least, ttl)
        found.add(address)
    addresses = tuple(sorted(str(ipaddress.ip_address(address)) for address in found))
    return Answer(
        Kind.RECORDS, addresses=addresses, ttl=least, rcode="NOERROR", server=server, canonical=question.name
    )


def interpret(message: dns.message.Message, question: Question, server: str) -> Answer:
    """The taxonomy of R6 for one whole reply."""
    rcode = dns.rcode.to_text(message.rcode())
    if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return Answer(Kind.UNKNOWN, rcode=rcode, server=server, detail=f"{server}: {rcode}")
    try:
        return _read(message, question, server, rcode)
    except (dns.exception.DNSException, ValueError) as error:
        detail = f"{server}: {rcode}, but {str(error) or type(error).__name__}"
        return Answer(Kind.UNKNOWN, rcode="GARBAGE", server=server, detail=detail)


def _read(message: dns.message.Message, question: Question, server: str, rcode: str) -> Answer:
    rdtype = dns.rdatatype.RdataType(question.type.value)
    owner = dns.name.from_text(question.name + ".")
    ttl: int | None = None
    seen = {owner}
    records = message.get_rrset(message.answer, owner, _IN, rdtype)
    while records is None:
        link = message.get_rrset(message.answer, owner, _IN, dns.rdatatype.CNAME)
        if link is None:
            break
        ttl = _minimum(ttl, link.ttl)
        owner = link[0].target
        if owner in seen or len(seen) > MAX_CHAIN:
            raise ValueError(f"the CNAME chain of {question.name} loops or has more than {MAX_CHAIN} links")
        seen.add(owner)
        records = message.get_rrset(message.answer, owner, _IN, rdtype)
    canonical = _text(owner)
    base = Answer(Kind.RECORDS, rcode=rcode, server=server, canonical=canonical)
    if records is None:
        return _negative(message, base, owner, ttl)
    if message.rcode() == dns.rcode.NXDOMAIN:
        raise ValueError("it holds an answer, which NXDOMAIN denies")
    ttl = _minimum(ttl, records.ttl)
    if question.type is not RecordType.SRV:
        return replace(base, addresses=_addresses(records), ttl=ttl)
    srv = tuple(sorted({SrvRecord(r.priority, r.weight, r.port, _text(r.target)) for r in records}))
    glue, ttl = _glue(message, {record.target for record in srv if record.target}, ttl)
    return replace(base, srv=srv, glue=glue, ttl=ttl)


def _negative(message: dns.message.Message, base: Answer, owner: dns.name.Name, ttl: int | None) -> Answer:
    soa_ttl: int | None = None
    delegation = False
    for rrset in message.authority:
        if rrset.rdtype == dns.rdatatype.SOA and owner.is_subdomain(rrset.name):
            # RFC 2308 section 5: the lower of the SOA's own TTL and its minimum field.
            soa_ttl = min(_minimum(None, rrset.ttl), _minimum(None, rrset[0].minimum))
        delegation = delegation or rrset.rdtype == dns.rdatatype.NS
    if message.rcode() == dns.rcode.NXDOMAIN:
        kind = Kind.NXDOMAIN
    elif delegation and soa_ttl is None and not message.flags & dns.flags.AA:
        raise ValueError("it is a referral: the server does not recurse for us")
    else:
        kind = Kind.NODATA
    if soa_ttl is not None and ttl is not None:
        soa_ttl = min(soa_ttl, ttl)
    return replace(base, kind=kind, ttl=soa_ttl, chain_ttl=ttl)


def _glue(
    message: dns.message.Message, targets: set[str], ttl: int
) -> tuple[tuple[tuple[str, tuple[str, ...]], ...], int]:
    found: dict[str, tuple[str, ...]] = {}
    for rrset in message.additional:
        name = _text(rrset.name)
        if name in targets and rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            found[name] = tuple(sorted({*found.get(name, ()), *_addresses(rrset)}))
            ttl = _minimum(ttl, rrset.ttl)
    return tuple(sorted(found.items())), ttl


def _addresses(rrset: dns.rrset.RRset) -> tuple[str, ...]:
    return tuple(sorted({str(ipaddress.ip_address(rdata.address)) for rdata in rrset}))


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if len(name) > 1 else ""


def _minimum(known: int | None, ttl: int) -> int:
    sane = ttl if 0 <= ttl <= MAX_TTL else 0
    return sane if known is None else min(known, sane)
