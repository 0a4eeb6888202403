"""From a Graph to a Program of kernel calls, and from there to a Relax module."""
