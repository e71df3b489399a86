"""Shared-memory regions of the echo server, as memory.proto says."""

from __future__ import annotations

import os

from aclserve import errors
from aclserve.v1 import memory_pb2
from client.echo_errors import abort

FOLDER = "/dev/shm"


class Regions:
    """Regions by id, each with its lease and the object's descriptor, from when it was registered."""

    def __init__(self, server, enabled):
        self._server = server
        self.enabled = enabled
        self.visible = True
        self.sealed = True  # finds sealed memory, too
        self.held = {}
        self.used = []  # region, offset and length of each slice of each item, in order
        self.keys = []  # of all that were asked for
        self.registered = 0

    def register(self, request, context):
        lease = self._server.lease(context)
        self.keys.append(request.key)
        if not self.enabled:
            abort(context, errors.FailedPrecondition("shared memory is off here", reason="SHARED_MEMORY_OFF"))
        try:
            if not self.visible:
                raise FileNotFoundError
            if request.key.startswith("memfd:"):
                _, process, number, name = request.key.split(":")
                path = f"/proc/{process}/fd/{number}"
                if not self.sealed or name not in os.readlink(path):
                    raise FileNotFoundError
                file = os.open(path, os.O_RDWR)
            else:
                file = os.open(FOLDER + request.key, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            abort(context, errors.NotFound("the server sees no such object", reason="REGION_NOT_VISIBLE"))
        assert os.fstat(file).st_mode & 0o777 == 0o600
        assert len(request.probe) == 32
        if os.pread(file, 32, request.offset_bytes) != request.probe:
            os.close(file)
            abort(context, errors.FailedPrecondition("another object", reason="REGION_DIFFERS"))
        self.registered += 1
        region = memory_pb2.Region(id=self._server.new_id(), key=request.key, size_bytes=request.size_bytes)
        self.held[region.id] = lease["id"], file, region.size_bytes
        return memory_pb2.RegisterRegionResponse(region=region)

    def _file(self, part, context, count):
        held = self.held.get(part.region_id)
        if held is None or held[0] != self._server.lease_id_of(context) or held[0] not in self._server.leases:
            raise errors.NotFound("no such region", reason="REGION_NOT_FOUND")
        if part.offset_bytes + count > held[2]:
            raise errors.OutOfRange("past the end", reason="RANGE_OUTSIDE_REGION")
        if part.length_bytes and part.length_bytes < count:
            raise errors.FailedPrecondition("too small", reason="REGION_TOO_SMALL")
        self.used.append((part.region_id, part.offset_bytes, part.length_bytes or count))
        return held[1]

    def read(self, part, context, count):
        return os.pread(self._file(part, context, count), count, part.offset_bytes)

    def write(self, part, context, content):
        assert os.pwrite(self._file(part, context, len(content)), content, part.offset_bytes) == len(content)

    def close(self):
        for _, file, _ in self.held.values():
            os.close(file)
        self.held.clear()
