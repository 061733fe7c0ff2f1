"""The broker: Redis keys, and the moves of jobs, each of which is one Lua script.

RQ's own code makes a few moves, such as `Job.cancel`, in one transaction each.
"""
