"""The broker: every state change of a job is one Lua script, and only these modules call them."""
