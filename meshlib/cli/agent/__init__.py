"""``meshlib agent``: the node agent, and what one asks it."""
