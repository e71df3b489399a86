"""A capacity planner: the service's own batching, fair shares and frame policies, in simulated time.

`engine.batching`, `engine.costs`, `engine.flows` and `engine.frames` are used as they are; here stand the arrivals,
the devices, what a process costs its host, and the balancing between processes. Pure but for `measure`, which asks a
server, and `command`.
"""
