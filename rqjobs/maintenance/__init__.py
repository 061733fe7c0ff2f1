"""Upkeep: the sweep of orphans and strays, the audit, and the doctor."""
