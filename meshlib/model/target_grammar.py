"""The grammar of target strings: strict, because a lenient reading of a wrong target sends traffic to a wrong place."""

from __future__ import annotations

import re
from typing import NoReturn

from meshlib.errors import DataError, TargetError
from meshlib.model.address import RELAXED
from meshlib.model.names import MAX_PORT, ends_in_number, is_digits, is_host_name, is_label, is_port_name
from meshlib.model.target import StaticAddress, Target, TargetDefaults

_SCHEME = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII
)  # RFC 3986 3.1, with the slashes that all targets have
_SINGLE = re.compile(r"(?:k8s|kubernetes|dns|dns\+srv|static|file):", re.ASCII | re.IGNORECASE)
_DNS_PORT = 53
_MAX_TEXT = 65536  # a static target of a thousand addresses needs 30 kB; beyond that it is not a target
_MAX_WEIGHT = 65535  # as SRV records have (RFC 2782), so that every source has one range
_FORMS = "write k8s:///NAME.NAMESPACE:PORT, dns:///HOST:PORT, dns+srv:///_NAME._PROTO.HOST, static:///IP:PORT or file:///PATH#NS/NAME:PORT"


class _Part:
    """A slice of the input that remembers where it stands, so that an error can point at it."""

    __slots__ = ("start", "text", "whole")

    def __init__(self, whole: str, start: int, end: int) -> None:
        self.whole, self.start, self.text = whole, start, whole[start:end]

    def fail(self, reason: str, hint: str = "") -> NoReturn:
        raise TargetError(self.whole, self.start, self.start + len(self.text), reason, hint)

    def sub(self, start: int, end: int | None = None) -> _Part:
        stop = len(self.text) if end is None else end
        return _Part(self.whole, self.start + start, self.start + stop)

    def cut(self, separator: str) -> tuple[_Part, _Part | None]:
        """Split at the first separator; the second part is None when there is none."""
        at = self.text.find(separator)
        return (self, None) if at < 0 else (self.sub(0, at), self.sub(at + len(separator)))

    def cut_last(self, separator: str) -> tuple[_Part, _Part | None]:
        at = self.text.rfind(separator)
        return (self, None) if at < 0 else (self.sub(0, at), self.sub(at + len(separator)))

    def split(self, separator: str) -> list[_Part]:
        parts, rest = [], self
        while True:
            head, tail = rest.cut(separator)
            parts.append(head)
            if tail is None:
                return parts
            rest = tail


def parse(text: str, defaults: TargetDefaults) -> Target:
    """Parse one target; see Target.parse."""
    whole = _Part(text, 0, len(text))
    if not text:
        whole.fail("it is empty", _FORMS)
    if len(text) > _MAX_TEXT:
        whole.fail(f"it is longer than {_MAX_TEXT} characters")
    for at, character in enumerate(text):
        if character.isspace() or not character.isprintable():
            _Part(text, at, at + 1).fail(f"{character!r} cannot be part of a target", "remove it")
    found = _SCHEME.match(text)
    if found is None:
        return _scheme_less(whole, defaults)
    scheme, rest = found.group(1).lower(), whole.sub(found.end())
    match scheme:
        case "k8s" | "kubernetes":
            return _kubernetes(_after_empty_authority(scheme, rest, "NAME.NAMESPACE:PORT"), defaults)
        case "dns":
            return _dns(rest)
        case "dns+srv":
            return _dns_srv(rest)
        case "static":
            return _static(_after_empty_authority(scheme, rest, "IP:PORT"))
        case "file":
            return _file(rest)
        case "http" | "https":
            whole.sub(0, found.end()).fail(
                "this is a URL, not a target",
                "give the URL to the HTTP client; a target starts with k8s:///, dns:/// or the like",
            )
    if not rest.text:
        whole.fail("nothing follows the scheme")
    return Target(scheme=scheme, path=rest.text)


def _scheme_less(whole: _Part, defaults: TargetDefaults) -> Target:
    single = _SINGLE.match(whole.text)
    if single:
        whole.sub(0, single.end()).fail("the scheme must be followed by ://", _FORMS)
    host, port = whole.cut_last(":")
    if "/" in whole.text:
        whole.fail("a target without a scheme is HOST:PORT, without a path", _FORMS)
    _no_user(host)
    target = cluster_host(host.text, None, defaults)
    if target is None:
        hint = _FORMS
        if is_label(host.text) or (host.text.count(".") == 1 and all(map(is_label, host.text.split(".")))):
            wanted = port.text if port and port.text else "PORT"
            hint = f"write k8s:///{host.text}:{wanted} for a Service, dns:///HOST:PORT for a DNS name"
        host.fail(
            f"neither a scheme nor a cluster host name (NAME.NAMESPACE.svc or with .{defaults.cluster_domain})",
            hint,
        )
    if port is None:
        host.fail("the port is missing", f"write {host.text}:PORT")
    return Target.kubernetes(
        target.name, target.namespace, _port(port, named=True), hostname=target.hostname, by_host=True
    )


def cluster_host(host: str, port: int | str | None, defaults: TargetDefaults) -> Target | None:
    """``[HOST.]NAME.NS.svc[.DOMAIN][.]`` in any case as a target, or None when the host is not of this form."""
    name = host.lower().removesuffix(".")
    domain = defaults.cluster_domain.lower().strip(".")
    name = name.removesuffix("." + domain) if domain else name
    labels = name.split(".")
    if len(labels) not in (3, 4) or labels[-1] != "svc" or not all(map(is_label, labels)):
        return None
    hostname = labels[0] if len(labels) == 4 else ""
    return Target.kubernetes(labels[-3], labels[-2], port, hostname=hostname, by_host=True)


def _after_empty_authority(scheme: str, rest: _Part, form: str) -> _Part:
    if not rest.text.startswith("/"):
        rest.fail(
            "there must be three slashes: nothing stands between the second and the third",
            f"write {scheme}:///{form}",
        )
    return rest.sub(1)


def _no_user(part: _Part) -> None:
    at = part.text.find("@")
    if at >= 0:
        part.sub(0, at + 1).fail("a target has no user part", "remove it")


def _label(part: _Part, what: str) -> str:
    if not part.text:
        part.fail(f"the {what} is missing")
    if part.text == "*":
        part.fail(f"the {what} must be one name: there are no wildcards")
    if "%" in part.text:
        part.fail(f"the {what} cannot have percent escapes", "write it as it is")
    if not is_label(part.text):
        lower = part.text.lower()
        hint = (
            f"Kubernetes names are lower case: write {lower}"
            if lower != part.text and is_label(lower)
            else ""
        )
        part.fail(f"not a {what}: only a-z, 0-9 and '-', at most 63 characters, first and last not '-'", hint)
    return part.text


def _number(part: _Part, what: str, low: int, high: int) -> int:
    text = part.text
    if (
        not is_digits(text)
        or (len(text) > 1 and text[0] == "0")
        or len(text) > 7
        or not low <= int(text) <= high
    ):
        part.fail(f"the {what} must be a number from {low} to {high}, without leading zeros")
    return int(text)


def _port(part: _Part, *, named: bool) -> int | str:
    if not part.text:
        part.fail("the port is missing")
    if named and is_port_name(part.text):
        return part.text
    if named and not is_digits(part.text):
        part.fail("the port must be a number from 1 to 65535 or the name of a Service port (a-z, 0-9, '-')")
    return _number(part, "port", 1, MAX_PORT)


def _service_port(part: _Part) -> tuple[_Part, int | str]:
    host, port = part.cut_last(":")
    if port is None:
        part.fail("the port is missing", f"write {part.text}:PORT, with the number or name of a Service port")
    return host, _port(port, named=True)


def _kubernetes(rest: _Part, defaults: TargetDefaults) -> Target:
    _no_user(rest)
    host, port = _service_port(rest)
    labels = host.split(".")
    if len(labels) > 2:
        hint = "write k8s:///NAME.NAMESPACE:PORT"
        if len(labels) > 2 and labels[2].text.lower() == "svc":
            hint = f"write k8s:///{labels[0].text}.{labels[1].text}:{port}, or the host name without a scheme"
        host.fail("only NAME or NAME.NAMESPACE may stand before the port", hint)
    name = _label(labels[0], "Service name")
    namespace = _label(labels[1], "namespace") if len(labels) == 2 else defaults.namespace
    return Target.kubernetes(name, namespace, port)


def _address_and_port(part: _Part, default_port: int | None, what: str) -> tuple[str, int]:
    """``ip:port`` or ``[v6]:port``, as canonical text and number."""
    text = part.text
    if text.startswith("["):
        close = text.find("]")
        if close < 0:
            part.fail("the bracket is not closed", "write [IPv6]:PORT")
        host, tail = part.sub(1, close), part.sub(close + 1)
        if tail.text and not tail.text.startswith(":"):
            tail.fail("only :PORT may follow the bracket")
        port = tail.sub(1) if tail.text else None
        if ":" not in host.text:
            host.fail("only IPv6 addresses stand in brackets")
    elif text.count(":") > 1:
        part.fail("an IPv6 address needs brackets", "write [IPv6]:PORT")
    else:
        host, port = part.cut(":")
    _no_user(host)
    try:
        address = RELAXED.check(host.text)
    except DataError as error:
        host.fail(f"{what}: {error.reason}")
    if port is None:
        if default_port is None:
            part.fail("the port is missing", f"write {text}:PORT")
        return address, default_port
    return address, _number(port, "port", 1, MAX_PORT)


def _server(part: _Part) -> str:
    if not part.text:
        return ""
    address, port = _address_and_port(part, _DNS_PORT, "the DNS server must be an IP address")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _authority_and_path(rest: _Part, form: str) -> tuple[str, _Part]:
    server, path = rest.cut("/")
    if path is None:
        rest.fail("a slash must stand between the server and the name", f"write {form}")
    return _server(server), path


def _host_name(part: _Part) -> str:
    if not part.text:
        part.fail("the host is missing")
    _no_user(part)
    if "%" in part.text:
        part.fail("a host cannot have percent escapes or a zone id", "write the name as it is")
    if not part.text.isascii():
        part.fail("a host has ASCII characters only", "write an international name in its xn-- form")
    name = part.text.lower()
    if not is_host_name(name):
        part.fail(
            "not a host name: labels of a-z, 0-9, '-' and '_' joined by single dots, at most 253 characters"
        )
    return name


def _dns(rest: _Part) -> Target:
    server, path = _authority_and_path(rest, "dns:///HOST:PORT or dns://SERVER/HOST:PORT")
    if "/" in path.text:
        path.sub(path.text.index("/")).fail("no slash may stand in HOST:PORT or after it")
    host, port = path.cut_last(":")
    if path.text.startswith("[") or (port is not None and ends_in_number(host.text) and "@" not in host.text):
        name, number = _address_and_port(path, None, "the host looks like an IP address but")
        return Target(
            scheme="dns",
            name=name,
            port=number,
            server=server,
            authority=f"[{name}]" if ":" in name else name,
        )
    name = _host_name(host)
    if port is None:
        path.fail(
            "the port is missing",
            f"write dns:///{host.text}:PORT, or dns+srv:/// to take it from SRV records",
        )
    return Target(
        scheme="dns",
        name=name,
        port=_port(port, named=False),
        server=server,
        authority=name.removesuffix("."),
    )


def _dns_srv(rest: _Part) -> Target:
    server, path = _authority_and_path(rest, "dns+srv:///_NAME._PROTO.HOST")
    if ":" in path.text:
        path.sub(path.text.index(":")).fail("SRV records carry the port", "remove the port")
    name = _host_name(path)
    labels = name.split(".", 2)
    if (
        len(labels) < 3
        or not (labels[0].startswith("_") and labels[1].startswith("_"))
        or not labels[2].strip(".")
    ):
        path.fail("an SRV name starts with _NAME._PROTO.", "write dns+srv:///_http._tcp.HOST")
    return Target(scheme="dns+srv", name=name, server=server, authority=labels[2].removesuffix("."))


def _static(rest: _Part) -> Target:
    seen: dict[tuple[str, int], None] = {}
    addresses = []
    for part in rest.split(","):
        if not part.text:
            part.fail("an address is missing", "write IP:PORT,IP:PORT")
        place, *options = part.split(";")
        address, port = _address_and_port(place, None, "a static address must be an IP address")
        weight = 1
        for position, option in enumerate(options):
            key, value = option.cut("=")
            if key.text != "weight" or value is None:
                option.fail("the only option of a static address is weight=N")
            if position:
                option.fail("the weight is given twice")
            weight = _number(value, "weight", 0, _MAX_WEIGHT)
        if (address, port) in seen:
            place.fail("this address stands twice", "give it once, with weight=N for a larger share")
        seen[address, port] = None
        addresses.append(StaticAddress(address, port, weight))
    first = addresses[0].address
    return Target(
        scheme="static", addresses=tuple(addresses), authority=f"[{first}]" if ":" in first else first
    )


def _file(rest: _Part) -> Target:
    if not rest.text.startswith("/"):
        rest.fail("the path must be absolute: three slashes", "write file:///PATH#NAMESPACE/NAME:PORT")
    place, fragment = rest.cut("#")
    if fragment is None:
        rest.fail("the Service is missing", "write file:///PATH#NAMESPACE/NAME:PORT")
    if "%" in place.text:
        place.fail("a path cannot have percent escapes", "write the path as it is")
    path = place.text.removesuffix("/") or "/"
    for segment in place.sub(1, len(path)).split("/") if path != "/" else ():
        if segment.text in ("", ".", ".."):
            segment.fail("a path has no empty, '.' or '..' part", "write the absolute path")
    _no_user(fragment)
    service, port = _service_port(fragment)
    namespace, name = service.cut("/")
    if name is None:
        service.fail("the namespace is missing", f"write #NAMESPACE/{service.text}:{port}")
    ns, svc = _label(namespace, "namespace"), _label(name, "Service name")
    return Target(scheme="file", name=svc, namespace=ns, port=port, path=path, authority=f"{svc}.{ns}.svc")
