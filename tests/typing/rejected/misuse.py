"""Mistakes that the types catch."""

import httpx

import meshlib

meshlib.Mesh(strict="yes")  # expect: arg-type
meshlib.Mesh().target(80)  # expect: arg-type
meshlib.wrap("http://orders.shop.svc")  # expect: type-var
meshlib.no_such_name  # expect: attr-defined
httpx.AsyncClient(transport=meshlib.MeshTransport())  # expect: arg-type
meshlib.load_config("meshlib.toml")  # expect: arg-type
meshlib.Mesh().target("k8s:///a.b:80").pick(timeout="1")  # expect: arg-type
