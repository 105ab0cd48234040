"""SliceStore: what each change does to the Services."""

from __future__ import annotations

from meshlib.model.service import ServiceKey
from meshlib.model.slices import EndpointSlice, SliceEndpoint
from meshlib.model.store import SliceStore

ORDERS, USERS = ServiceKey("shop", "orders"), ServiceKey("shop", "users")


def make(name: str, service: ServiceKey = ORDERS, address: str = "10.0.0.1", uid: str = "u") -> EndpointSlice:
    return EndpointSlice(
        namespace="shop",
        name=name,
        service=service,
        family=4,
        endpoints=(SliceEndpoint(address=address),),
        uid=uid,
    )


def test_apply_and_delete() -> None:
    """Adding, changing and deleting a slice name the Service; unknown deletions change nothing."""
    store = SliceStore()
    assert store.apply(make("b")) == {ORDERS}
    assert store.apply(make("a")) == {ORDERS}
    assert [s.name for s in store.slices_of(ORDERS)] == ["a", "b"]
    assert store.apply(make("a", address="10.0.0.2")) == {ORDERS}
    assert store.slices_of(ORDERS)[0].endpoints[0].address == "10.0.0.2"
    assert store.delete("shop", "a") == {ORDERS}
    assert store.delete("shop", "a") == frozenset()
    assert store.delete("other", "b") == frozenset()
    assert [s.name for s in store.slices_of(ORDERS)] == ["b"]
    assert store.slices_of(USERS) == ()


def test_equal_slice_changes_nothing_and_keeps_the_object() -> None:
    """After a relist equal slices stay the same objects, so what is computed from them stays valid."""
    store = SliceStore()
    first = make("a")
    store.apply(first)
    assert store.apply(make("a")) == frozenset()
    assert store.replace([make("a")]) == frozenset()
    assert store.slices_of(ORDERS)[0] is first


def test_label_moves_a_slice() -> None:
    """A slice whose Service label changes leaves the old Service and joins the new one."""
    store = SliceStore()
    store.apply(make("a"))
    assert store.apply(make("a", USERS)) == {ORDERS, USERS}
    assert store.slices_of(ORDERS) == ()
    assert [s.name for s in store.slices_of(USERS)] == ["a"]
    assert store.services() == {USERS}


def test_label_removed() -> None:
    """A slice that loses its label leaves its Service and belongs to nobody, until it is labelled again."""
    store = SliceStore()
    store.apply(make("a"))
    assert store.apply(make("a", ServiceKey("shop", ""))) == {ORDERS}
    assert store.slices_of(ORDERS) == ()
    assert store.services() == frozenset()
    assert store.apply(make("a")) == {ORDERS}
    assert len(store.slices_of(ORDERS)) == 1


def test_same_name_new_uid_replaces() -> None:
    """A slice deleted and made again under its name replaces the old one, even if it looks the same."""
    store = SliceStore()
    store.apply(make("a", uid="old"))
    assert store.apply(make("a", uid="new")) == {ORDERS}
    assert [s.uid for s in store.slices_of(ORDERS)] == ["new"]


def test_replace_drops_what_is_not_listed() -> None:
    """A complete list removes what it does not hold, and names exactly the Services that differ."""
    store = SliceStore()
    store.replace([make("a"), make("b"), make("c", USERS)])
    assert store.replace([make("a"), make("c", USERS)]) == {ORDERS}
    assert [s.name for s in store.slices_of(ORDERS)] == ["a"]
    assert store.replace([]) == {ORDERS, USERS}
    assert len(store) == 0


def test_object_with_several_slices() -> None:
    """An Endpoints object gives several slices that come, change and go together; an empty one is still known."""
    store = SliceStore()
    two = (make("orders[0]"), make("orders[1]", address="10.0.0.2"))
    assert store.apply_object("shop", "orders", two) == {ORDERS}
    assert len(store) == 1
    assert store.apply_object("shop", "orders", two[:1]) == {ORDERS}
    assert store.slices_of(ORDERS) == two[:1]
    assert store.apply_object("shop", "orders", ()) == {ORDERS}
    assert store.slices_of(ORDERS) == ()
    assert len(store) == 1
    assert store.replace_objects({("shop", "orders"): two}) == {ORDERS}
    assert store.delete("shop", "orders") == {ORDERS}
    assert store.slices_of(ORDERS) == ()


def test_namespaces_are_apart() -> None:
    """Slices of one name in two namespaces are two slices."""
    store = SliceStore()
    other = ServiceKey("eu", "orders")
    store.apply(make("a"))
    store.apply(EndpointSlice(namespace="eu", name="a", service=other, family=4))
    assert store.delete("shop", "a") == {ORDERS}
    assert len(store.slices_of(other)) == 1


def test_two_objects_that_give_one_slice_name() -> None:
    """Should two objects ever give slices of one name, removing the older leaves the newer one's in place."""
    store = SliceStore()
    store.apply_object("shop", "x", (make("a"),))
    newer = make("a", address="10.0.0.2")
    store.apply_object("shop", "y", (newer,))
    store.delete("shop", "x")
    assert store.slices_of(ORDERS) == (newer,)
