"""Hostile headers, pixel data and PDUs: what the node makes of them is a reason, never a crash."""
