"""The node agent: programs a node's kernel with the Services of a cluster, from the same model as the clients.

``facts -> compile -> Desired -> translate -> kernel objects -> plan -> apply``. Everything before apply is pure. What
may receive traffic is decided by ``meshlib.model.eligibility`` alone.
"""
