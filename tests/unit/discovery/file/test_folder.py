"""Files into Services and slices: joining, last good per file, half-written files, symlinks, what is skipped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from meshlib.discovery.file import folder
from meshlib.discovery.file.folder import FolderState, Registry, registry, scan
from meshlib.model.address import RELAXED
from meshlib.model.service import ServiceKey, ServiceType

ORDERS = ServiceKey("shop", "orders")
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  ports:
  - {name: http, port: 80, targetPort: 8080}
"""


def slice_(*addresses: str, name: str = "orders-1", label: str = "orders", version: str = "v1") -> str:
    listed = "".join(f"- addresses: ['{address}']\n" for address in addresses)
    labels = f"  labels: {{kubernetes.io/service-name: {label}}}\n" if label else ""
    return (
        f"apiVersion: discovery.k8s.io/{version}\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: shop\n"
        f"{labels}addressType: IPv4\nports:\n- {{name: http, port: 8080}}\nendpoints:\n{listed or '  []'}\n"
    )


ENDPOINTS = """\
apiVersion: v1
kind: Endpoints
metadata: {name: orders, namespace: shop}
subsets:
- addresses: [{ip: 10.0.0.9}]
  ports: [{name: http, port: 8080}]
"""


def settled(path: Path | str, state: FolderState | None = None) -> FolderState:
    """Scan until nothing changes any more."""
    state = state or FolderState()
    for _ in range(4):
        after = scan(str(path), state, RELAXED)
        if after is state:
            return state
        state = after
    raise AssertionError("never settles")


def addresses(found: Registry, key: ServiceKey = ORDERS) -> set[str]:
    return {endpoint.address for s in found.slices.get(key, ()) for endpoint in s.endpoints}


def test_a_file_with_several_documents(tmp_path: Path) -> None:
    """One file, a Service and its slice; loopback addresses are welcome in what a person wrote here."""
    file = tmp_path / "shop.yaml"
    file.write_text(SERVICE + "---\n" + slice_("127.0.0.2", "127.0.0.3"))
    found = registry(settled(file))
    assert found.services[ORDERS].ports[0].name == "http"
    assert addresses(found) == {"127.0.0.2", "127.0.0.3"}


def test_a_folder_of_manifests(tmp_path: Path) -> None:
    """Manifests of a folder are joined; hidden files, other suffixes and other kinds are none of ours."""
    (tmp_path / "a.yaml").write_text(SERVICE)
    (tmp_path / "b.yml").write_text(slice_("10.0.0.1"))
    (tmp_path / "c.json").write_text(
        '{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "apps/v1", "kind": "Deployment"}]}'
    )
    (tmp_path / "d.yaml").write_text(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\n"
    )
    (tmp_path / ".hidden.yaml").write_text("broken: [")
    (tmp_path / "notes.txt").write_text("broken: [")
    state = settled(tmp_path)
    found = registry(state)
    assert state.problems == ()
    assert set(found.services) == {ORDERS}
    assert addresses(found) == {"10.0.0.1"}


def test_v1beta1_endpoints_and_lists(tmp_path: Path) -> None:
    """Older slices and Endpoints count; where both exist the slices do."""
    (tmp_path / "a.yaml").write_text(SERVICE + "---\n" + ENDPOINTS)
    assert addresses(registry(settled(tmp_path))) == {"10.0.0.9"}
    (tmp_path / "b.yaml").write_text(slice_("10.0.0.1", version="v1beta1"))
    assert addresses(registry(settled(tmp_path))) == {"10.0.0.1"}


def test_typed_lists_as_kubectl_prints_them(tmp_path: Path) -> None:
    """``EndpointSliceList`` items carry no kind of their own."""
    (tmp_path / "a.json").write_text(
        '{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": [{"metadata": {"name": "s",'
        ' "namespace": "shop", "labels": {"kubernetes.io/service-name": "orders"}}, "addressType": "IPv4",'
        ' "ports": [{"name": "http", "port": 1}], "endpoints": [{"addresses": ["10.0.0.1"]}]}]}'
    )
    assert addresses(registry(settled(tmp_path))) == {"10.0.0.1"}


@pytest.mark.parametrize("label,key", [("orders", ORDERS), ("", ServiceKey("shop", "orders-1"))])
def test_slices_without_a_service(tmp_path: Path, label: str, key: ServiceKey) -> None:
    """A headless Service is made for them, by their label, else by their own name."""
    (tmp_path / "a.yaml").write_text(slice_("10.0.0.1", label=label))
    found = registry(settled(tmp_path))
    assert found.services[key].type is ServiceType.HEADLESS
    assert [(port.name, port.port) for port in found.services[key].ports] == [("http", 8080)]
    assert addresses(found, key) == {"10.0.0.1"}


def test_bad_entries_are_skipped_with_their_line(tmp_path: Path) -> None:
    """One unreadable address: told with file and line, the others are used."""
    text = slice_("10.0.0.1", "999.0.0.1", "10.0.0.2")
    (tmp_path / "a.yaml").write_text(text)
    found = registry(settled(tmp_path))
    assert addresses(found) == {"10.0.0.1", "10.0.0.2"}
    line = text.splitlines().index("- addresses: ['999.0.0.1']") + 1
    ((place, _),) = found.skipped
    assert place.startswith(f"a.yaml:{line} ")


@pytest.mark.parametrize(
    "broken,line",
    [
        (SERVICE.replace("port: 80,", "port: 808080,"), 6),
        (SERVICE.replace("port: 80,", "port: http,"), 6),
        (SERVICE + "\tx: 1\n", 7),
        (SERVICE + "kind: Service\n", 7),
        (SERVICE.replace("kind: Service\n", ""), 1),
        ("just text\n", 1),
        (SERVICE + "---\n- a list\n", 8),
        (SERVICE.replace("orders", "Not_A_Name"), 3),
    ],
)
def test_a_broken_edit_keeps_the_last_good_state(tmp_path: Path, broken: str, line: int) -> None:
    """Syntax and meaning: the last good objects stay, the problem names file and line, and mending it is enough."""
    file = tmp_path / "a.yaml"
    file.write_text(SERVICE)
    state = settled(tmp_path)
    file.write_text(broken)
    state = settled(tmp_path, state)
    assert [problem.where for problem in state.problems] == [f"a.yaml:{line}"]
    assert ORDERS in registry(state).services
    file.write_text(SERVICE)
    state = settled(tmp_path, state)
    assert state.problems == ()


@pytest.mark.parametrize("broken", ["kind: [", SERVICE.replace("port: 80,", f"port: 0x{'f' * 5000},")])
def test_one_broken_file_does_not_stop_the_others(tmp_path: Path, broken: str) -> None:
    """The last good state is kept per file; the rest of the folder follows its edits."""
    (tmp_path / "a.yaml").write_text(SERVICE)
    (tmp_path / "b.yaml").write_text(slice_("10.0.0.1"))
    state = settled(tmp_path)
    (tmp_path / "a.yaml").write_text(broken)
    (tmp_path / "b.yaml").write_text(slice_("10.0.0.2"))
    state = settled(tmp_path, state)
    assert addresses(registry(state)) == {"10.0.0.2"}
    assert ORDERS in registry(state).services


def test_less_is_believed_at_the_second_look(tmp_path: Path) -> None:
    """An editor that truncates and then writes never empties the set; a removal that lasts does."""
    file = tmp_path / "a.yaml"
    file.write_text(slice_("10.0.0.1", "10.0.0.2"))
    state = settled(tmp_path)
    file.write_text("")
    state = scan(str(tmp_path), state, RELAXED)
    assert addresses(registry(state)) == {"10.0.0.1", "10.0.0.2"}
    file.write_text(slice_("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    state = scan(str(tmp_path), state, RELAXED)
    assert addresses(registry(state)) == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}, "more is believed at once"
    file.write_text(slice_("10.0.0.3"))
    state = scan(str(tmp_path), state, RELAXED)
    assert len(addresses(registry(state))) == 3
    state = scan(str(tmp_path), state, RELAXED)
    assert addresses(registry(state)) == {"10.0.0.3"}


def test_a_vanished_file_counts_at_the_second_look(tmp_path: Path) -> None:
    """Replacing a file in two steps is not a removal; deleting it is."""
    file = tmp_path / "a.yaml"
    file.write_text(SERVICE)
    (tmp_path / "b.yaml").write_text(slice_("10.0.0.1"))
    state = settled(tmp_path)
    file.unlink()
    state = scan(str(tmp_path), state, RELAXED)
    assert registry(state).services[ORDERS].type is ServiceType.CLUSTER_IP
    file.write_text(SERVICE)
    state = settled(tmp_path, state)
    assert registry(state).services[ORDERS].type is ServiceType.CLUSTER_IP
    file.unlink()
    state = settled(tmp_path, state)
    assert registry(state).services[ORDERS].type is ServiceType.HEADLESS, "only its slice is left"


def test_a_vanished_path_keeps_everything(tmp_path: Path) -> None:
    """The folder itself gone (a volume that is being remounted): kept, and told."""
    place = tmp_path / "manifests"
    place.mkdir()
    (place / "a.yaml").write_text(SERVICE)
    state = settled(place)
    shutil.rmtree(place)
    state = settled(place, state)
    assert ORDERS in registry(state).services
    assert len(state.problems) == 1
    place.mkdir()
    (place / "a.yaml").write_text(SERVICE)
    assert settled(place, state).problems == ()


def test_atomic_rename_and_configmap_swap(tmp_path: Path) -> None:
    """``mv new old`` and the ``..data`` symlink swap of ConfigMap volumes are seen, sizes being equal."""
    file = tmp_path / "a.yaml"
    file.write_text(slice_("10.0.0.1"))
    state = settled(tmp_path)
    (tmp_path / ".new").write_text(slice_("10.0.0.2"))
    os.replace(tmp_path / ".new", file)
    state = settled(tmp_path, state)
    assert addresses(registry(state)) == {"10.0.0.2"}

    volume = tmp_path / "volume"
    for generation in (1, 2):
        (volume / f"..{generation}").mkdir(parents=True)
        (volume / f"..{generation}" / "a.yaml").write_text(slice_(f"10.0.1.{generation}"))
    (volume / "..data").symlink_to("..1")
    (volume / "a.yaml").symlink_to("..data/a.yaml")
    state = settled(volume)
    assert addresses(registry(state)) == {"10.0.1.1"}
    (volume / "..data_tmp").symlink_to("..2")
    os.replace(volume / "..data_tmp", volume / "..data")
    assert addresses(registry(settled(volume, state))) == {"10.0.1.2"}


def test_missing_and_unreadable(tmp_path: Path) -> None:
    """What was never readable has no objects and a problem; nothing hangs on a pipe or a dangling link."""
    assert settled(tmp_path / "nothing").problems[0].where.endswith("nothing")
    os.mkfifo(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").symlink_to("nowhere")
    (tmp_path / "c.yaml").mkdir()
    (tmp_path / "d.yaml").write_bytes(b"a: 1\nb: \xff\n")
    state = settled(tmp_path)
    assert [problem.where for problem in state.problems] == ["a.yaml", "b.yaml", "c.yaml", "d.yaml:2"]
    assert not state.complete


def test_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beyond the bound is not parsed."""
    monkeypatch.setattr(folder, "MAX_BYTES", 100)
    (tmp_path / "a.yaml").write_text("# " + "x" * 200)
    assert "larger" in settled(tmp_path).problems[0].reason


def test_duplicates_are_told_and_the_first_counts(tmp_path: Path) -> None:
    """Two files with the same object: the first by name is used, the second is named with the place of the first."""
    (tmp_path / "a.yaml").write_text(slice_("10.0.0.1"))
    (tmp_path / "b.yaml").write_text(slice_("10.0.0.2"))
    found = registry(settled(tmp_path))
    assert addresses(found) == {"10.0.0.1"}
    assert found.skipped == (("b.yaml:1", "EndpointSlice shop/orders-1 stands in a.yaml:1 already"),)


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle poll is stat calls only and returns the very same state."""
    (tmp_path / "a.yaml").write_text(SERVICE)
    state = settled(tmp_path)
    monkeypatch.setattr(folder, "_read", None)
    assert scan(str(tmp_path), state, RELAXED) is state


def test_byte_order_mark(tmp_path: Path) -> None:
    """A file saved with a BOM is read as if it had none."""
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbf" + SERVICE.encode())
    assert ORDERS in registry(settled(tmp_path)).services
