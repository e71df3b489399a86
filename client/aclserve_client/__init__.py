"""Clients of aclserve."""
