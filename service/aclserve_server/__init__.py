"""The aclserve microservice: AscendCL models and memory, served over gRPC streams."""
