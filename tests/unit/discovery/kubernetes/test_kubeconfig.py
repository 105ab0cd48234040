"""What rotates in a kubeconfig: exec plugins, certificates, token files; and what must not change with it."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from meshlib.discovery.kubernetes import exec_plugin, kubeconfig
from meshlib.discovery.kubernetes.credentials import Credentials, find_credentials
from meshlib.discovery.kubernetes.exec_plugin import run_plugin
from meshlib.discovery.kubernetes.transport import tls_context
from meshlib.errors import ConfigError, DiscoveryError, MeshError
from tests.components.process import wait_for

VERSION = "client.authentication.k8s.io/v1"
SECRET = "s3cr3t-t0ken"


class Time:
    """One clock for both, so that an expirationTimestamp is easy to write."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def run_blocking(function: Callable[..., Any], /, *args: Any) -> Any:
    return function(*args)


def find(path: Path | str, clock: Time | None = None, **settings: Any) -> Credentials:
    clock = clock or Time()
    return asyncio.run(
        find_credentials({"kubeconfig": str(path), **settings}, {}, run_blocking, clock, clock)
    )


def refresh(credentials: Credentials, force: bool = False) -> None:
    asyncio.run(credentials.refresh(force))


def write(path: Path, user: dict[str, Any], **cluster: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {
        "current-context": "here",
        "clusters": [
            {"name": "c", "cluster": {"server": "https://c:6443", **cluster}},
            {"name": "other", "cluster": {"server": "https://other:6443"}},
        ],
        "users": [{"name": "u", "user": user}],
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u"}},
            {"name": "there", "context": {"cluster": "other", "user": "u"}},
        ],
    }
    path.write_text(yaml.safe_dump(config))
    return path


def script(path: Path, body: str) -> str:
    """A plugin: a program that counts its runs in ``path``.runs."""
    path.write_text(f"#!/bin/sh\necho run >> {path}.runs\n{body}\n")
    path.chmod(0o755)
    return str(path)


def runs(path: Path) -> int:
    log = Path(f"{path}.runs")
    return len(log.read_text().splitlines()) if log.exists() else 0


def credential(**status: Any) -> str:
    return json.dumps({"apiVersion": VERSION, "kind": "ExecCredential", "status": status})


def section(command: str, **more: Any) -> dict[str, Any]:
    return {"exec": {"apiVersion": VERSION, "command": command, **more}}


def certificate(authority: trustme.CA) -> tuple[str, str]:
    issued = authority.issue_cert("client.test")
    return issued.cert_chain_pems[0].bytes().decode(), issued.private_key_pem.bytes().decode()


def test_plugin_runs_once_until_its_credential_ends(tmp_path: Path) -> None:
    """Not again for every request or minute; again shortly before its expirationTimestamp, and when it is refused."""
    plugin, clock = tmp_path / "plugin", Time()
    (tmp_path / "out").write_text(credential(token="one", expirationTimestamp="1970-01-01T00:30:00Z"))
    found = find(write(tmp_path / "config", section(script(plugin, f"cat {tmp_path}/out"))), clock)
    assert (found.token, runs(plugin)) == ("one", 1)
    (tmp_path / "out").write_text(credential(token="two"))
    for clock.now in (1001.0, 1100.0, 1789.0):  # 1970-01-01T00:30:00Z is second 1800
        refresh(found)
    assert (found.token, runs(plugin)) == ("one", 1)
    clock.now = 1791.0
    refresh(found)
    assert (found.token, runs(plugin)) == ("two", 2)
    clock.now = 1e6  # the second one said nothing of its end
    refresh(found)
    assert runs(plugin) == 2
    (tmp_path / "out").write_text(credential(token="three"))
    refresh(found, force=True)
    assert (found.token, runs(plugin)) == ("three", 3)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"echo {SECRET}; echo log in again >&2; exit 3", r"plugin failed \(3\): log in again"),
        (f"echo {SECRET}", "did not write an ExecCredential"),
        (f"echo '[\"{SECRET}\"]'", "did not write an ExecCredential"),
        (f'echo \'{{"apiVersion": "{VERSION}", "status": {{}}}}\'', "neither a token nor a certificate"),
        ('echo \'{"apiVersion": "x/v9", "status": {"token": "a"}}\'', "another apiVersion"),
        (f'echo \'{{"apiVersion": "{VERSION}", "status": {{"token": "a b"}}}}\'', "not one word of ASCII"),
    ],
    ids=["exit status", "no JSON", "no object", "empty", "other version", "two words"],
)
def test_plugin_that_fails_is_told_and_not_anonymous(tmp_path: Path, body: str, reason: str) -> None:
    """No credentials at first: an error, never requests without any. Later: the old token stays, and the reason shows.
    What the plugin printed as its result is in neither."""
    path = write(tmp_path / "config", section(script(tmp_path / "plugin", body)))
    with pytest.raises(MeshError, match=reason) as caught:
        find(path)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    script(tmp_path / "plugin", f"echo '{credential(token='good')}'")
    found = find(path)
    script(tmp_path / "plugin", body)
    refresh(found, force=True)
    assert found.token == "good"
    assert SECRET not in found.problem
    assert "plugin" in found.problem or "one word" in found.problem


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_plugin_that_never_ends_is_ended_with_its_children(tmp_path: Path) -> None:
    """The time limit holds even if a child of the plugin keeps its output open."""
    plugin = {
        "apiVersion": VERSION,
        "command": script(tmp_path / "plugin", f"sleep 60 & echo $! > {tmp_path}/pid; wait"),
    }
    with pytest.raises(DiscoveryError, match=r"did not end within 0\.5 s"):
        run_plugin(plugin, str(tmp_path), {}, time_limit=0.5)
    pid = (tmp_path / "pid").read_text().strip()

    def gone() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except (FileNotFoundError, ProcessLookupError):
            return True  # and its parent has taken note
        return state in "ZX"

    wait_for(gone, what="the end of the plugin's child")  # killed, but not yet off the processor, perhaps


def test_plugin_gets_what_kubectl_gives_it(tmp_path: Path) -> None:
    """Its arguments, its environment, the cluster if asked for; no terminal; a relative path is the kubeconfig's."""
    folder = tmp_path / "kube"
    program = (
        "import json, os, sys; info = json.loads(os.environ['KUBERNETES_EXEC_INFO']);"
        "assert sys.stdin.read() == '';"
        "print(json.dumps({**info, 'status': {'token': '-'.join([sys.argv[1], os.environ['WHO'],"
        " info['spec']['cluster']['server'].split('//')[1], str(info['spec']['interactive'])])}}))"
    )
    path = write(
        folder / "config",
        section(
            "./bin/plugin",
            args=["-c", program, "argument"],
            env=[{"name": "WHO", "value": "me"}],
            provideClusterInfo=True,
        ),
    )
    (folder / "bin").mkdir()
    (folder / "bin" / "plugin").symlink_to(sys.executable)
    assert find(path).token == "argument-me-c:6443-False"
    with pytest.raises(MeshError, match="cannot be started"):
        find(write(folder / "config", section("no-such-program-anywhere")))
    with pytest.raises(MeshError, match="needs command"):
        find(write(folder / "config", section("")))


def test_plugin_with_a_certificate_is_run_again_when_refused(tmp_path: Path) -> None:
    """A client certificate of a plugin is used, and a new one is taken over."""
    authority = trustme.CA()
    first, second = certificate(authority), certificate(authority)
    (tmp_path / "out").write_text(credential(clientCertificateData=first[0], clientKeyData=first[1]))
    found = find(write(tmp_path / "config", section(script(tmp_path / "plugin", f"cat {tmp_path}/out"))))
    assert (found.token, found.tls.cert_data.decode()) == ("", first[0])
    tls_context(found.tls)
    (tmp_path / "out").write_text(credential(clientCertificateData=second[0], clientKeyData=second[1]))
    refresh(found, force=True)
    assert (found.tls.cert_data.decode(), found.tls.key_data.decode()) == second
    tls_context(found.tls)


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "files"])
def test_certificates_and_token_files_are_read_again(tmp_path: Path, inline: bool) -> None:
    """Rotated in place under the same names, or in the kubeconfig itself: taken over within a minute."""
    clock = Time()

    def put(authority: trustme.CA, token: str) -> Path:
        cert, key = certificate(authority)
        pems = {"certificate-authority": authority.cert_pem.bytes().decode(), "client-certificate": cert}
        pems["client-key"] = key
        (tmp_path / "token").write_text(token)
        ending = "-data" if inline else ""
        values = {}
        for name, pem in pems.items():
            (tmp_path / name).write_text(pem)
            values[name + ending] = base64.b64encode(pem.encode()).decode() if inline else name
        ca = values.pop("certificate-authority" + ending)
        user = {**values, "tokenFile": "token"}
        return write(tmp_path / "config", user, **{"certificate-authority" + ending: ca})

    old, new = trustme.CA(), trustme.CA()
    found = find(put(old, "one"), clock)
    assert (found.token, found.tls.ca_data) == ("one", old.cert_pem.bytes())
    before = found.tls
    put(new, "second")
    clock.now += 59
    refresh(found)
    assert found.tls == before
    clock.now += 1
    refresh(found)
    assert (found.token, found.tls.ca_data) == ("second", new.cert_pem.bytes())
    assert found.tls.cert_data != before.cert_data
    tls_context(found.tls)
    (tmp_path / "token").unlink()
    (tmp_path / "config").write_text("\tbroken")
    clock.now += 60
    refresh(found)
    assert (found.token, found.tls.ca_data) == ("second", new.cert_pem.bytes())
    assert str(tmp_path / "config") in found.problem


def test_use_context_and_another_server_do_not_move_a_running_process(tmp_path: Path) -> None:
    """What was chosen at the start stays; a file that now names another server is refused with a reason."""
    path, clock = write(tmp_path / "config", {"token": "one"}), Time()
    found = find(path, clock)
    text = path.read_text()
    path.write_text(
        text.replace("current-context: here", "current-context: there").replace("token: one", "token: two")
    )
    clock.now += 60
    refresh(found)
    assert (found.server, found.token) == ("https://c:6443", "two")
    path.write_text(text.replace("https://c:6443", "https://evil:6443"))
    clock.now += 60
    refresh(found)
    assert (found.server, found.token) == ("https://c:6443", "two")
    assert "another server" in found.problem


def test_several_files_of_which_one_is_missing(tmp_path: Path) -> None:
    """As kubectl reads KUBECONFIG=a:b: those that exist; none at all is an error."""
    path = write(tmp_path / "config", {"token": "one"})
    assert find(f"{tmp_path}/none:{path}").token == "one"
    with pytest.raises(ConfigError, match="is not a file"):
        find(f"{tmp_path}/none:{tmp_path}/neither")


@pytest.mark.parametrize(
    ("user", "cluster"),
    [
        ({"client-key-data": "%%%=", "client-certificate-data": "%%%="}, {}),
        ({"client-certificate": "missing.pem"}, {}),
        ({}, {"certificate-authority": "."}),
        ({}, {"server": None}),
        ({}, {"server": 7}),
        ({"exec": "rm -rf"}, {}),
        ({"username": "u", "password": SECRET}, {}),
    ],
    ids=["no base64", "no file", "a folder", "no server", "a number", "exec is text", "basic auth"],
)
def test_bad_parts_are_told(tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any]) -> None:
    """An error that names the file, without a byte of what is secret."""
    path = write(tmp_path / "config", user, **cluster)
    with pytest.raises(MeshError, match=str(path)) as caught:
        find(path)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_encrypted_key_asks_nobody(tmp_path: Path) -> None:
    """OpenSSL would ask for the password at the terminal, in a service."""
    cert, _ = certificate(trustme.CA())
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    tls = kubeconfig.TlsMaterial(cert_data=cert.encode(), key_data=locked)
    with pytest.raises((OSError, ValueError)):
        tls_context(tls)


def test_many_refreshes_run_one_plugin_and_a_silent_one_holds_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten requests that meet a 401 run the plugin once. While it is silent beyond patience, requests go on with what
    is known, and no second helper thread is taken."""
    clock, calls, release = Time(), [], threading.Event()

    def plugin(*args: Any) -> exec_plugin.ExecCredential:
        calls.append(args)
        if len(calls) > 2:
            assert release.wait(20)
        return exec_plugin.ExecCredential(token=f"token{len(calls)}")

    monkeypatch.setattr(kubeconfig, "run_plugin", plugin)
    monkeypatch.setattr(kubeconfig, "PATIENCE", 0.05)
    path = write(tmp_path / "config", section("anything"))

    async def main() -> None:
        found = await find_credentials({"kubeconfig": str(path)}, {}, asyncio.to_thread, clock, clock)
        monkeypatch.setattr(kubeconfig, "PATIENCE", 20)
        await asyncio.gather(*(found.refresh(force=True) for _ in range(10)))
        assert (len(calls), found.token) == (2, "token2")
        monkeypatch.setattr(kubeconfig, "PATIENCE", 0.05)
        for _ in range(3):
            await found.refresh(force=True)
            clock.now += 100
            await found.refresh()
        assert (len(calls), found.token) == (3, "token2")
        assert "no answer" in found.problem
        cancelled = asyncio.create_task(found.refresh(force=True))
        await asyncio.sleep(0)
        cancelled.cancel()
        release.set()
        monkeypatch.setattr(kubeconfig, "PATIENCE", 20)
        await found.refresh(force=True)
        assert (found.token, found.problem) == ("token3", "")

    asyncio.run(main())
