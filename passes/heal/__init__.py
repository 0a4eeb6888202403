"""Repair what pruning broke, beyond single layers."""
