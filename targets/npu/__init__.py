"""Arm Ethos-U: integer regions to TOSA, through Vela, and in the TOSA reference model."""
