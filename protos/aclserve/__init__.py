"""The contract of aclserve: what server and clients share."""
