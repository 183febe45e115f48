"""What NVIDIA's nvidia-cuda-mps-control is documented to do, as far as it is used.

Its server is in a session of its own, out of reach of a signal to the group, and the processes that it calls clients
are the stubs whose environment leads to its pipes. STAND_IN in the environment makes it fail in one way or another.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

pipes, how = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]), os.environ.get("STAND_IN", "")
place = str(pipes / "control")


def stub(process):
    setting = os.fsencode(f"CUDA_MPS_PIPE_DIRECTORY={pipes}")
    try:
        is_stub = b"python_backend_stub" in (process / "cmdline").read_bytes()
        return is_stub and setting in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


if sys.argv[1:] != ["-f"]:
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(place)
        except OSError:
            sys.exit("Cannot find MPS control daemon process")
        link.sendall(sys.stdin.buffer.read())
        link.shutdown(socket.SHUT_WR)
        sys.stdout.write(link.makefile().read())
    sys.exit(0)

(Path(os.environ["CUDA_MPS_LOG_DIRECTORY"]) / "control.log").write_text("Starting\nno such error as this\n")
print("Starting control daemon", flush=True)
if how == "dies":
    sys.exit("no GPU is fit for it")
if how == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if how == "mute":
    signal.pause()
server = subprocess.Popen([sys.executable, "-IS", "-c", "import signal; signal.pause()"], start_new_session=True)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(place)
    listener.listen()
    while True:
        with listener.accept()[0] as link:
            request = link.makefile().read().split()
            if request == ["get_server_list"]:
                answer = [server.pid]
            elif request == ["get_client_list", str(server.pid)]:
                answer = [] if how == "alone" else [p.name for p in Path("/proc").glob("[0-9]*") if stub(p)]
            else:
                answer = []
            link.sendall("".join(f"{word}\n" for word in answer).encode())
        if request == ["quit"] and how != "deaf":
            if "STAND_IN_ENDED" in os.environ:
                Path(os.environ["STAND_IN_ENDED"]).touch()
            server.kill()
            server.wait()
            sys.exit(0)
