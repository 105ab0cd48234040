"""The fast HTTP/1.1 wire: httptools' parser straight on sockets and transports, and a free list per endpoint.

It serves what is most of the traffic, HTTP/1.1 over TCP and TLS; everything else (HTTP/2, ``trace`` callbacks, CONNECT,
network backends of the application's own) goes to httpcore's engine, which it contains. One thought per module:

* ``choice``      which requests are ours
* ``request``     a request's head and the framing of its body, as bytes
* ``reply``       bytes in, a reply's head and body out; ``second`` judges what httptools refuses
* ``free_list``   who gets which connection
* ``slots``       the free lists of one engine: limits in all, expiry, retirement
* ``sync_wire``, ``sync_engine``    a blocking socket, and the engine for threads
* ``aio_wire``, ``aio_engine``      an asyncio protocol, and the engine of one event loop
* ``aio_dial``    opening an asyncio connection
* ``response``, ``bodies``  what httpx gets
"""
