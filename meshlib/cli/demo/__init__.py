"""``meshlib demo``: real traffic over real local servers, while one slows down, one dies and one joins.

* ``backend``   one server process, HTTP and gRPC
* ``fleet``     starts them, and writes the manifest folder that is the registry
* ``story``     what happens when, and the figures that show how well it went
* ``traffic``   the clients: wrapped httpx and a mesh channel
* ``board``     what was measured, per backend
* ``screen``    the live table, or plain lines
"""
