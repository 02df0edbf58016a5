"""Main of every child process: reads who it is from stdin, and runs that role.

Started as `python -m tokasaurus.launch.child`, not through multiprocessing: nothing is pickled and
the user's main module is not imported again.
"""

import ctypes
import logging
import os
import signal
import sys
import threading

import msgspec
import zmq

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import TokasaurusError
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.channels import ZmqOutbox
from tokasaurus.ipc.messages.to_supervisor import Failed
from tokasaurus.launch.topology import ProcessSpec
from tokasaurus.observability.logging import setup_logging

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_FLUSH_MILLISECONDS = 1000


class ChildOrders(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor writes, as one line of JSON, to a child's stdin."""

    spec: ProcessSpec
    addresses: Addresses
    config_json: str
    supervisor_pid: int


def die_with(supervisor_pid: int) -> None:
    """Arrange that the kernel kills this process when its parent's thread that started it ends.

    Where the kernel can't (outside Linux), a thread waits for the parent's end of stdin to close.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_exit_at_end_of_stdin, name="parent-watch", daemon=True).start()
    if os.getppid() != supervisor_pid:
        raise SystemExit("the supervisor has ended already")


def _exit_at_end_of_stdin() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


def run_role(orders: ChildOrders) -> None:
    """Run the role until it is told to shut down. Only the role's own packages are imported."""
    spec, addresses = orders.spec, orders.addresses
    config = EngineConfig.from_json(orders.config_json)
    match spec.role:
        case "server":
            from tokasaurus.server.process import run_server

            run_server(config, addresses, spec.server_index, spec.num_managers)
        case "manager":
            from tokasaurus.manager.process import run_manager

            run_manager(config, addresses, spec.dp_rank, spec.num_workers)
        case "worker":
            from tokasaurus.worker.process import run_worker

            run_worker(config, addresses, spec.dp_rank, spec.rank)


def report_failure(orders: ChildOrders, reason: str) -> None:
    """Tell the supervisor why this process is about to exit."""
    outbox = ZmqOutbox(orders.addresses.supervisor())
    outbox.send(Failed(process=orders.spec.name, reason=reason))
    outbox.close()
    zmq.Context.instance().destroy(linger=_FLUSH_MILLISECONDS)


def main() -> None:
    orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=ChildOrders)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to coordinate
    die_with(orders.supervisor_pid)
    config = EngineConfig.from_json(orders.config_json)
    setup_logging(orders.spec.name, config.log_level)
    try:
        run_role(orders)
    except TokasaurusError as error:
        report_failure(orders, str(error))
    except Exception as error:
        log.critical("%s", error, exc_info=True)
        report_failure(orders, f"{type(error).__name__}: {error}")
    else:
        return
    logging.shutdown()
    os._exit(1)  # threads of a role that failed half-way may never end


if __name__ == "__main__":
    main()
