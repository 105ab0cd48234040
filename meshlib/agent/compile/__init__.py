"""Compile: from facts to what a node's kernel shall do. Pure, and cheap for a small change in a large cluster."""

from __future__ import annotations

from meshlib.agent.compile.compiler import Compiler, DesiredChange, compile_desired

__all__ = ["Compiler", "DesiredChange", "compile_desired"]
