"""Generated messages and stubs of the aclserve.v1 API."""
