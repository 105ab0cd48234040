"""meshlib doctor: what it finds in environments that need no server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from meshlib.cli.app import meshlib
from meshlib.cli.doctor import libraries, together
from meshlib.cli.doctor.api import Api
from meshlib.cli.doctor.cluster import check_cluster
from meshlib.cli.doctor.command import report
from meshlib.cli.doctor.findings import Finding, Level
from meshlib.cli.doctor.libraries import check_environment, check_libraries, check_plugins
from meshlib.cli.doctor.place import check_config, check_names, check_place
from meshlib.cli.doctor.together import Asked, examine_cluster
from meshlib.cli.settings import quiet
from meshlib.model.target import Target, TargetDefaults
from meshlib.runtime import dev_file
from meshlib.runtime.config import load_config
from meshlib.runtime.config.rollout import with_live_keys
from meshlib.runtime.mesh import Mesh
from meshlib.testing.fake_apiserver import Connection, FakeApiServer, Request

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
SEARCH = TargetDefaults(search=("shop.svc.cluster.local", "svc.cluster.local"), ndots=5)
DENY = {"metadata": {"namespace": "own", "name": "deny"}, "spec": {"policyTypes": ["Ingress", "Egress"]}}


def texts(findings: list[Finding], level: Level) -> str:
    return "\n".join(f"{one.what} | {one.fix}" for one in findings if one.level is level)


def test_this_environment_is_examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside a cluster nothing lacks, and the JSON form has its stable keys."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "GRPC_ENABLE_FORK_SUPPORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MESHLIB_ZONE", "eu-1")
    result = CliRunner().invoke(meshlib, ["doctor", "-o", "json", "--exit-code"])
    found = json.loads(result.output)
    assert set(found) == {"version", "lacks", "findings", "configuration"}
    assert set(found["findings"][0]) == {"area", "level", "what", "fix"}
    assert found["lacks"] == 0, found
    assert result.exit_code == 0
    assert {"key": "zone", "value": "eu-1", "source": "MESHLIB_ZONE"} in found["configuration"]
    assert {"libraries", "configuration", "place", "dns", "kubernetes"} <= {
        one["area"] for one in found["findings"]
    }


def test_lacks_decide_the_exit_code_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """--exit-code turns a lack into 1; without it doctor has done its work with 0."""
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
    assert CliRunner().invoke(meshlib, ["doctor", "--exit-code"]).exit_code == 1
    result = CliRunner().invoke(meshlib, ["doctor"])
    assert result.exit_code == 0
    assert "unset GRPC_ENABLE_FORK_SUPPORT" in result.output


@pytest.mark.parametrize("namespace", ["../../nodes", "a b", "Shop", "shop/orders"])
def test_a_namespace_must_be_a_name(namespace: str) -> None:
    """It is asked for in a path of the API server: what is no name is wrong usage, and nothing is asked."""
    result = CliRunner().invoke(meshlib, ["doctor", "-n", "shop", "-n", namespace])
    assert result.exit_code == 2
    assert repr(namespace) in result.output


def test_versions_are_listed() -> None:
    """Each wrapped or used library is there with its version."""
    found = texts(list(check_libraries()), Level.OK)
    for name in ("httpx", "grpcio", "kubernetes", "dnspython"):
        assert f"{name} {metadata.version(name)}" in found


def test_the_namesake_is_a_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 3D library of the same package name, installed beside ours, is named with the way out."""
    real = metadata.version
    monkeypatch.setattr(
        libraries.metadata, "version", lambda name: "3.1" if name == "meshlib" else real(name)
    )
    assert "3D library" in texts(list(check_libraries()), Level.LACK)


def test_a_missing_library_is_a_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed is named with the command that installs it."""

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(libraries.metadata, "version", version)
    assert "pip install grpcio" in texts(list(check_libraries()), Level.LACK)


def test_plugins_are_listed_with_their_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin is shown with its group and the distribution it comes from."""
    monkeypatch.setattr(libraries, "plugins", lambda: {"meshlib.pickers": {"first": "some-package 1.2"}})
    assert "meshlib.pickers: first (some-package 1.2)" in texts(list(check_plugins()), Level.OK)


def test_proxies_are_worth_knowing() -> None:
    """httpx sends proxied requests through the proxy: those are not balanced."""
    assert "HTTPS_PROXY" in texts(list(check_environment({"HTTPS_PROXY": "http://proxy:3128"})), Level.NOTE)
    assert list(check_environment({})) == []


def test_ignored_configuration_is_shown() -> None:
    """Warnings of the configuration are in the report."""
    config = load_config(environ={"MESHLIB_STRIKT": "1"})
    assert "MESHLIB_STRIKT" in texts(list(check_config(config)), Level.NOTE)


def test_every_setting_has_its_source() -> None:
    """Tables are shown entry by entry, each with its place."""
    config = load_config(
        {
            "aliases": {"orders.internal": "dns:///a:1"},
            "discovery": {"k8s": {"context": "c"}},
            "target": {"dns:///a:1": {"picker": "random"}},
        },
        {"MESHLIB_ADDRESS_ALLOW": "10.0.0.0/8"},
    )
    rows = {row["key"]: (row["value"], row["source"]) for row in report(config, [])["configuration"]}
    assert rows["strict"] == (False, "default")
    assert rows["address.allow"] == (["10.0.0.0/8"], "MESHLIB_ADDRESS_ALLOW")
    assert rows['aliases."orders.internal"'] == ("dns:///a:1", 'code: aliases."orders.internal"')
    assert rows["discovery.k8s.context"] == ("c", "code: discovery.k8s.context")
    assert rows['target."dns:///a:1".picker'] == ("random", 'code: target."dns:///a:1".picker')


def test_secrets_of_resolvers_are_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """People paste what doctor prints; and the command's own doings are no setting of anybody's."""
    (tmp_path / "meshlib.toml").write_text(
        '[discovery.consul]\ntoken = "hunter2"\nhttp = {auth = "hunter2"}\n'
    )
    monkeypatch.setenv("MESHLIB_CONFIG", str(tmp_path / "meshlib.toml"))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "MESHLIB_STATUS_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(meshlib, ["doctor", "-o", "json"])
    rows = {row["key"]: row for row in json.loads(result.output)["configuration"]}
    assert rows["discovery.consul.token"]["value"] == "(set, not shown)"
    assert "hunter2" not in result.output
    assert rows["status_socket"] == {"key": "status_socket", "value": "auto", "source": "default"}


def test_targets_are_looked_at_by_a_quiet_mesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the application's exporters nor a status socket; and a Mesh that cannot be made is a finding."""
    meshes: list[Mesh] = []
    begin = Mesh.__init__

    def noted(mesh: Mesh, **arguments: Any) -> None:
        begin(mesh, **arguments)
        meshes.append(mesh)

    monkeypatch.setattr(Mesh, "__init__", noted)
    monkeypatch.setattr(dev_file, "SERVICE_ACCOUNT_DIR", str(tmp_path))  # the tests may run in a pod
    monkeypatch.chdir(tmp_path)
    config = load_config({"exporters": ["nobody_has_it"]}, environ={})
    asked = Asked(targets=("static:///127.0.0.1:1",))
    kept = {"KUBECONFIG": str(tmp_path / "none")}

    def look() -> list[Finding]:
        return asyncio.run(examine_cluster(config, SEARCH, kept, asked))

    assert any("127.0.0.1:1" in one.what for one in look())
    assert [(mesh.config.exporters, mesh.config.status_socket) for mesh in meshes] == [((), "off")]
    # What the file says later of the roll-out does not bring them back.
    later = with_live_keys(quiet(config), replace(config, percent=5.0))
    assert (later.exporters, later.status_socket, later.percent) == ((), "off", 5.0)
    (tmp_path / "meshlib.dev.toml").write_text("[replace]\norders = 0\n")
    for name in POD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MESHLIB_ENV", "dev")
    assert "meshlib.dev.toml" in texts([one for one in look() if one.area == "configuration"], Level.LACK)


def test_a_slow_optional_question_costs_its_own_answer_only() -> None:
    """No answer in time is no document, not an API server that is away."""

    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow")

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(slow), base_url="http://api") as client:
            assert await Api(client, {}).object("/api/v1/namespaces/shop/pods/web") is None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("denied", "items", "found"),
    [
        ("", [], []),
        ("own", [], None),
        ("shop", [], None),
        ("shop", [DENY], ["own/deny (egress)"]),
    ],
)
def test_no_policy_is_said_only_after_a_look(
    denied: str, items: list[dict[str, Any]], found: list[str] | None
) -> None:
    """One of both lists that may not be read leaves it open, unless the other one has somebody to name."""

    def answer(request: httpx.Request) -> httpx.Response:
        namespace = request.url.path.split("/")[-2]
        if not request.url.path.endswith("/networkpolicies"):
            return httpx.Response(404)
        return httpx.Response(403) if namespace == denied else httpx.Response(200, json={"items": items})

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://api") as client:
            policies = together._policies(Api(client, {}), {}, replace(SEARCH, namespace="own"))
            assert await policies(Target.parse("k8s:///orders.shop:80")) == found

    asyncio.run(main())


def test_unknown_place_in_a_pod_comes_with_the_downward_api() -> None:
    """Node and zone are notes in a pod, with the lines to paste, and nothing outside of one."""
    config = load_config({}, {})
    assert "fieldPath: spec.nodeName" in texts(list(check_place(config, SEARCH, POD, "")), Level.NOTE)
    assert texts(list(check_place(config, SEARCH, {}, "")), Level.NOTE) == ""
    known = load_config({"node": "a", "zone": "b"}, {})
    assert texts(list(check_place(known, SEARCH, POD, "")), Level.NOTE) == ""


def test_a_mesh_is_told() -> None:
    """A sidecar is named, with how to balance anyway; and that it is ignored when so configured."""
    standing_back = texts(list(check_place(load_config({}, {}), SEARCH, {}, "an Istio sidecar")), Level.NOTE)
    assert "an Istio sidecar" in standing_back
    assert "MESHLIB_SIDECAR=ignore" in standing_back
    ignoring = load_config({"sidecar": "ignore"}, {})
    assert "balance anyway" in texts(list(check_place(ignoring, SEARCH, {}, "an Istio sidecar")), Level.NOTE)


def test_a_pod_without_cluster_dns_lacks_it() -> None:
    """dnsPolicy: Default gives a search list without svc; and names of the cluster do not resolve."""
    defaults = TargetDefaults(cluster_domain="cluster.invalid", search=("example.invalid",))
    found = texts(list(check_names(defaults, POD)), Level.LACK)
    assert "ClusterFirst" in found
    assert "kubernetes.default.svc.cluster.invalid does not resolve" in found


def test_credentials(tmp_path: Path) -> None:
    """No credentials: a note on a laptop, a lack in a pod."""
    settings = {"service_account_dir": str(tmp_path)}
    laptop = asyncio.run(check_cluster({}, {"HOME": str(tmp_path)}, ["default"]))
    pod = asyncio.run(check_cluster(settings, {**POD, "HOME": str(tmp_path)}, ["default"]))
    assert [one.level for one in laptop] == [Level.NOTE]
    assert [one.level for one in pod] == [Level.LACK]
    assert "automountServiceAccountToken" in pod[0].fix


def test_switched_off_is_noted() -> None:
    """Somebody who wonders why nothing is balanced finds it here."""
    found = list(check_environment({"MESHLIB_DISABLED": "1"}))
    assert "MESHLIB_DISABLED is set" in texts(found, Level.NOTE)
    assert not list(check_environment({"MESHLIB_DISABLED": "0"}))


async def ask(server: FakeApiServer) -> list[Finding]:
    await server.start()
    try:
        return await check_cluster({"api_server": server.url}, {}, ["shop"])
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        (("v1", "v1beta1"), "discovery.k8s.io/v1"),
        (("v1beta1",), "discovery.k8s.io/v1beta1"),
        (("v1beta1", "v1"), "discovery.k8s.io/v1"),
        ((), "Endpoints are used instead"),
        (("v2alpha1",), "v1 Endpoints"),
    ],
)
def test_rights_are_asked_for_what_discovery_would_read(versions: tuple[str, ...], told: str) -> None:
    """The same choice of version as discovery's, and nothing lacks where Endpoints do the work."""
    server = FakeApiServer(versions)
    found = asyncio.run(ask(server))
    assert told in "\n".join(one.what for one in found)
    assert texts(found, Level.LACK) == ""
    lists = [request.path for request in server.requests if "/namespaces/shop/" in request.path]
    group = "/api/v1" if "Endpoints" in told else f"/apis/{told}"
    plural = "endpoints" if "Endpoints" in told else "endpointslices"
    assert lists == [f"{group}/namespaces/shop/{plural}", "/api/v1/namespaces/shop/services"]


@pytest.mark.parametrize(
    ("code", "document"),
    [(403, {}), (500, {}), (200, []), (200, {"versions": 5}), (200, {"kind": "APIGroup", "versions": [7]})],
    ids=str,
)
def test_a_server_that_does_not_tell_its_versions(code: int, document: object) -> None:
    """Closed, broken or senseless: a note, and the question is asked of v1."""

    async def react(request: Request, connection: Connection) -> bool:
        if request.path != "/apis/discovery.k8s.io":
            return False
        await connection.answer(code, json.dumps(document).encode())
        return True

    server = FakeApiServer()
    server.react = react
    found = asyncio.run(ask(server))
    assert "does not tell its versions" in texts(found, Level.NOTE)
    assert texts(found, Level.LACK) == ""
