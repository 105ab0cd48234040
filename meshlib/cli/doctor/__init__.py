"""``meshlib doctor``: what this environment offers, and the fix for each thing it lacks."""
