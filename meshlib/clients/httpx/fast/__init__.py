"""The fast HTTP/1.1 wire: httptools' parser straight on sockets and transports, and a free list per endpoint.

It serves what is most of the traffic, HTTP/1.1 over TCP and TLS; everything else (HTTP/2, ``trace`` callbacks, CONNECT,
network backends of the application's own) goes to httpcore's engine, which it contains. One thought per module:

* ``choice``      which requests are ours
* ``request``     a request's head and the framing of its body, as bytes
* ``reply``       bytes in, a reply's head and body out; ``second`` judges what httptools refuses
* ``free_list``   who gets which connection
* ``slots``       the free lists of one engine: limits in all, expiry, retirement
* ``sync_wire``, ``aio_wire``      one connection: a blocking socket, an asyncio protocol
* ``sync_dial``, ``aio_dial``      opening it
* ``sessions``     when a TLS session may be resumed
* ``sync_stream``, ``aio_stream``  what an application sees of it
* ``sync_engine``, ``aio_engine``  all connections of a client, or of its part on one event loop
* ``response``, ``bodies``         what httpx gets
"""
