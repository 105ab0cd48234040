"""Which credentials win, how they are re-read, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from meshlib.discovery.kubernetes.credentials import Credentials, check_server_url, find_credentials
from meshlib.discovery.kubernetes.transport import RequestFailed, open_transport, send
from meshlib.errors import ConfigError, DiscoveryError, MeshError
from tests.unit.discovery.kubernetes.virtual import Client, eventually, run

SECRET = "s3cr3t-t0ken"


class Clock:
    now = 0.0


async def run_blocking(function: Callable[..., Any], /, *args: Any) -> Any:
    return function(*args)


def find(
    settings: dict[str, Any], environ: dict[str, str] | None = None, clock: type[Clock] = Clock
) -> Credentials:
    def now() -> float:
        return clock.now

    return asyncio.run(find_credentials(settings, environ or {}, run_blocking, now, now))


def refresh(credentials: Credentials, force: bool = False) -> None:
    asyncio.run(credentials.refresh(force))


@pytest.fixture(scope="session")
def authority() -> bytes:
    return trustme.CA().cert_pem.bytes()


@pytest.fixture
def account(tmp_path: Path, authority: bytes) -> Path:
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text(SECRET + "\n")
    (folder / "ca.crt").write_bytes(authority)
    (folder / "namespace").write_text("shop")
    return folder


def kubeconfig(path: Path, server: str, **cluster: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
                "users": [{"name": "u", "user": {"token": SECRET}}],
                "contexts": [
                    {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "shop"}},
                    {"name": "there", "context": {"cluster": "c", "user": "u", "namespace": "elsewhere"}},
                ],
            }
        )
    )
    return path


def test_order_of_sources(tmp_path: Path, account: Path) -> None:
    """D12: explicit, KUBECONFIG, in-cluster, ~/.kube/config; and the description says which one won."""
    named = kubeconfig(tmp_path / "named", "https://named:6443")
    by_env = kubeconfig(tmp_path / "env", "https://env:6443")
    kubeconfig(tmp_path / ".kube" / "config", "https://home:6443")
    pod = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    home = {"HOME": str(tmp_path)}
    base = {"service_account_dir": str(account), "allow_kubeconfig": True}
    everything = {**pod, **home, "KUBECONFIG": str(by_env)}
    assert find({**base, "kubeconfig": str(named)}, everything).server == "https://named:6443"
    assert find({**base, "in_cluster": True}, everything).server == "https://10.96.0.1:443"
    assert find(base, everything).server == "https://env:6443"
    assert find(base, {**pod, **home}).server == "https://10.96.0.1:443"
    assert find({**base, "in_cluster": False}, {**pod, **home}).server == "https://home:6443"
    assert find(base, home).description == str(tmp_path / ".kube" / "config")
    assert "in-cluster" in find(base, pod).description


def test_kubeconfig_is_read_only_when_named_or_allowed(tmp_path: Path) -> None:
    """Transparent use never reads a kubeconfig on its own."""
    path = kubeconfig(tmp_path / ".kube" / "config", "https://home:6443")
    with pytest.raises(DiscoveryError, match="not read unless it is named"):
        find({}, {"HOME": str(tmp_path), "KUBECONFIG": str(path)})


def test_context_of_a_kubeconfig(tmp_path: Path) -> None:
    """The context decides the namespace; one that is not there is an error that names the file."""
    path = str(kubeconfig(tmp_path / "config", "https://c:6443"))
    assert find({"kubeconfig": path}).namespace == "shop"
    assert find({"kubeconfig": path, "context": "there"}).namespace == "elsewhere"
    with pytest.raises(ConfigError, match="config"):
        find({"kubeconfig": path, "context": "nowhere"})


def test_kubeconfig_without_verification_is_refused(tmp_path: Path) -> None:
    """insecure-skip-tls-verify works only when it is asked for."""
    path = kubeconfig(tmp_path / "config", "https://c:6443", **{"insecure-skip-tls-verify": True})
    with pytest.raises(ConfigError, match="insecure-skip-tls-verify"):
        find({"kubeconfig": str(path)})
    assert find({"kubeconfig": str(path), "insecure_skip_tls_verify": True}).tls.insecure


@pytest.mark.parametrize("text", ["\tnot: yaml: [", "[]", "", "a: &x [*x]", f"users: {SECRET}"])
def test_broken_kubeconfig_names_the_file_and_shows_nothing_of_it(tmp_path: Path, text: str) -> None:
    """Whatever is wrong with it: a ConfigError with its path, and no secret even in the traceback."""
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        find({"kubeconfig": str(path)})
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ConfigError, match="is not a file"):
        find({"kubeconfig": str(tmp_path / "missing")})


@pytest.mark.parametrize(
    "token", [f"{SECRET}\u00e9", f"{SECRET}\nx", f"{SECRET} x", f"{SECRET}\x00"], ids=repr
)
def test_a_kubeconfig_token_that_no_header_can_hold(tmp_path: Path, token: str) -> None:
    """Told by name when it is read, not with its text by whoever tries to send it."""
    path = kubeconfig(tmp_path / "config", "https://c:6443")
    config = yaml.safe_load(path.read_text())
    config["users"][0]["user"]["token"] = token
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(DiscoveryError, match="not one word of ASCII") as caught:
        find({"kubeconfig": str(path)})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_ipv6_api_server(account: Path) -> None:
    """An IPv6 address gets its brackets."""
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    assert find({"service_account_dir": str(account)}, environ).server == "https://[fd00::1]:6443"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://x",
        "http://10.0.0.1",
        "https://",
        "https://u:p@h",
        "https://h?x=1",
        "https://h:99999",
        "h:443",
    ],
)
def test_bad_server_urls(url: str) -> None:
    """What is not the URL of an API server, or would show the token, is refused with the place named."""
    with pytest.raises(ConfigError, match="the place"):
        check_server_url(url, "the place")


def test_token_and_ca_are_read_again(account: Path, authority: bytes) -> None:
    """Every 60 s, or when forced: a rotated token and CA are taken over."""

    class Time(Clock):
        now = 0.0

    found = find({"api_server": "https://a:1", "service_account_dir": str(account)}, clock=Time)
    assert (found.token, found.namespace, found.tls.ca_data) == (SECRET, "shop", authority)
    (account / "token").write_text("second")
    Time.now = 59.0
    refresh(found)
    assert found.token == SECRET
    Time.now = 60.0
    refresh(found)
    assert found.token == "second"
    (account / "token").write_text("third")
    refresh(found, force=True)
    assert found.token == "third"
    (account / "ca.crt").write_bytes(b"another")
    refresh(found, force=True)
    assert found.tls.ca_data == b"another"


@pytest.mark.parametrize("damage", ["empty", "missing", "binary", "two words", "folder"])
def test_unreadable_token_keeps_the_old_one(account: Path, damage: str) -> None:
    """A re-read that fails keeps the old token, says why, and shows no byte of it; a later good one is taken."""
    found = find({"api_server": "https://a:1", "service_account_dir": str(account)})
    token = account / "token"
    token.unlink()
    if damage == "empty":
        token.write_text("\n")
    elif damage == "binary":
        token.write_bytes(b"\xff" + SECRET.encode())
    elif damage == "two words":
        token.write_text(f"{SECRET} x")
    elif damage == "folder":
        token.mkdir()
    refresh(found, force=True)
    assert found.token == SECRET
    assert str(token) in found.problem
    assert SECRET not in found.problem + repr(found)
    if token.is_dir():
        token.rmdir()
    token.write_text("good")
    refresh(found, force=True)
    assert (found.token, found.problem) == ("good", "")


def test_no_token_at_all_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """Without a first token nothing works, and the message says which file is missing."""
    with pytest.raises(MeshError, match="token"):
        find({"api_server": "https://a:1", "service_account_dir": str(tmp_path)})


@pytest.mark.parametrize("asked", [False, True])
def test_proxies_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: bytes, asked: bool
) -> None:
    """A114: proxies, CA files and key logs of the environment are not for the API server; a kubeconfig's proxy-url is,
    and it sees a CONNECT without the token."""
    seen: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(65536))
        writer.write(b"HTTP/1.1 403 no\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
            monkeypatch.setenv(name, url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
        more = {"proxy-url": url} if asked else {}
        data = base64.b64encode(authority).decode()
        path = kubeconfig(
            tmp_path / "config", "https://127.0.0.1:1", **{"certificate-authority-data": data}, **more
        )
        clock = asyncio.get_running_loop().time
        found = await find_credentials({"kubeconfig": str(path)}, {}, run_blocking, clock, clock)
        transport = open_transport(found.tls, found.proxy)
        with pytest.raises(RequestFailed) as failed:
            await send(transport, found.server, "/api", {}, found.token, "", "GET /api")
        assert SECRET not in str(failed.value)
        await transport.aclose()
        server.close()

    asyncio.run(main())
    assert [each.split(b" ")[0] for each in seen] == ([b"CONNECT"] if asked else [])
    assert SECRET.encode() not in b"".join(seen)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "ftp://x", "127.0.0.1:3128", "http://"])
def test_unusable_proxy_is_told(tmp_path: Path, proxy: str) -> None:
    """A proxy that we cannot use is a failure like any other, retried, and no end of the task that meets it."""

    async def main() -> None:
        path = kubeconfig(tmp_path / "config", "https://127.0.0.1:1", **{"proxy-url": proxy})
        client = Client(kubeconfig=str(path))
        client.watch("k8s:///orders.shop:http")
        await eventually(lambda: client.failures("k8s:///orders.shop:http"), 10)
        await asyncio.sleep(100)
        await client.close()  # and nothing has died

    run(main)
