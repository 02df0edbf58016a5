"""Which processes an engine has, and how many threads each may use."""

import os
from pathlib import Path

import psutil
import pytest

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.launch import cpu_share
from tokasaurus.launch.cpu_share import thread_environment, usable_cores
from tokasaurus.launch.topology import SERVER_NAME, ProcessSpec, build_topology


def test_default_engine() -> None:
    specs = build_topology(EngineConfig(), with_server=True)
    assert [spec.name for spec in specs] == ["worker0.0", "manager0", SERVER_NAME]
    assert [spec.says_ready for spec in specs] == [False, True, True]


def test_replicas_without_a_server() -> None:
    specs = build_topology(EngineConfig(dp_size=3), with_server=False)
    assert [spec.name for spec in specs] == [
        *(f"worker{rank}.0" for rank in range(3)),
        *(f"manager{rank}" for rank in range(3)),
    ]


def test_server_knows_all_managers() -> None:
    server = build_topology(EngineConfig(dp_size=3), with_server=True)[-1]
    assert (server.role, server.num_managers) == ("server", 3)


def test_several_servers() -> None:
    config = EngineConfig(server_workers=3, dp_size=2)
    servers = [s for s in build_topology(config, with_server=True) if s.role == "server"]
    assert [(s.name, s.server_index, s.num_managers) for s in servers] == [
        (f"server{index}", index, 2) for index in range(3)
    ]
    assert all(server.says_ready for server in servers)
    assert len({server.inbox(Addresses("/somewhere")) for server in servers}) == 3
    assert not [s for s in build_topology(config, with_server=False) if s.role == "server"]


def test_workers_of_a_divided_replica() -> None:
    specs = build_topology(EngineConfig(dp_size=2, pp_size=2, tp_size=3), with_server=False)
    workers = [spec for spec in specs if spec.role == "worker"]
    assert [spec.name for spec in workers] == [f"worker{dp}.{i}" for dp in (0, 1) for i in range(6)]
    assert {spec.num_workers for spec in specs} == {6}
    assert all(spec.is_stopped_by_manager == (spec.role == "worker") for spec in specs)
    alone = build_topology(EngineConfig(dp_size=2), with_server=True)
    assert not any(spec.is_stopped_by_manager for spec in alone)


def test_every_process_has_its_own_inbox() -> None:
    addresses = Addresses("/somewhere")
    specs = build_topology(EngineConfig(dp_size=2), with_server=True)
    inboxes = {spec.inbox(addresses) for spec in specs}
    assert len(inboxes) == len(specs)
    assert addresses.worker(1, 0) in inboxes
    assert addresses.manager(1) in inboxes
    assert addresses.server(0) in inboxes


WORKER = ProcessSpec(name="worker0.0", role="worker")
MANAGER = ProcessSpec(name="manager0", role="manager")


@pytest.mark.parametrize(
    ("options", "environment", "threads"),
    [
        ({}, {}, "8"),
        ({"dp_size": 2}, {}, "4"),
        ({"dp_size": 16}, {}, "1"),
        ({"pp_size": 2, "tp_size": 2}, {}, "2"),
        ({"cpu_threads": 3, "dp_size": 2}, {}, "3"),
        ({"cpu_threads": 3}, {"OMP_NUM_THREADS": "1"}, "3"),
        ({}, {"OMP_NUM_THREADS": "5"}, None),
    ],
)
def test_workers_share_the_cores(
    options: dict[str, int], environment: dict[str, str], threads: str | None
) -> None:
    added = thread_environment(EngineConfig(**options), WORKER, environment, cores=8)
    assert added.get("OMP_NUM_THREADS") == threads


def test_others_have_one_thread_whatever_the_environment_says() -> None:
    added = thread_environment(EngineConfig(), MANAGER, {"OMP_NUM_THREADS": "8"}, cores=8)
    assert set(added.values()) == {"1"}


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 6), ("300000 100000", 3), ("10000 100000", 1), ("900000 100000", 6)],
)
def test_cores_are_those_of_affinity_and_container(
    limit: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(cpu_share, "_CGROUP_CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 16 if logical else 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert usable_cores() == cores


def test_waiting_threads_of_workers_give_their_core_up() -> None:
    assert int(thread_environment(EngineConfig(), WORKER, {}, cores=2)["GOMP_SPINCOUNT"]) > 0
    chosen = {"GOMP_SPINCOUNT": "7"}
    assert "GOMP_SPINCOUNT" not in thread_environment(EngineConfig(), WORKER, chosen, cores=2)
