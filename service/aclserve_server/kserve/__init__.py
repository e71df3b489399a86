"""Protos of the KServe v2 side and their stubs (wire package `inference`). Only `rpc` imports them, never a client."""
