"""``meshlib status`` and ``meshlib top``: what running programs believe, asked over their local sockets."""
