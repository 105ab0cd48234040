"""Endpoints written into the target itself: ``static:///10.0.0.1:80,[fd00::1]:80;weight=3``."""
