"""Makes the kernel drop the packets of one connection, as a router does that has forgotten it."""

import ctypes
import socket

SO_ATTACH_FILTER = 26


def drop_packets(sock: socket.socket) -> None:
    """Makes the kernel drop all packets of a connection: no acknowledgement, no FIN, no reset."""

    class Instruction(ctypes.Structure):
        _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32))

    class Program(ctypes.Structure):
        _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction)))

    # "Return 0": keep no byte of any packet.
    program = Program(1, ctypes.pointer(Instruction(0x06, 0, 0, 0)))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(program))
