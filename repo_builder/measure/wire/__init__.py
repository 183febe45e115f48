"""Bytes on sockets: connections, messages, shared memory, and what is asked of a server beside inference."""
