"""Deals a trace to groups of replicas before any of them runs, so that each can be replayed alone.

The server's load balancer chooses among all replicas; since nothing has run, when a request ends
is not observed but taken from the trace: as if it had the device to itself. Whatever a client asks
next stays in the group, where the balancer goes by what really happens.
"""

import heapq
import itertools

from simulation.replay import Deployment, as_requests
from simulation.workload import Prompt, Trace
from tokasaurus.ipc.messages.to_manager import GenerateRequest
from tokasaurus.server.load_balancer import LoadBalancer


def split(num_replicas: int, num_groups: int) -> list[range]:
    """The ranks of each group, of which no two differ in size by more than one."""
    edges = [num_replicas * index // num_groups for index in range(num_groups + 1)]
    return [range(first, last) for first, last in itertools.pairwise(edges)]


def deal(trace: Trace, deployment: Deployment, group: range) -> Trace:
    """Those prompts of the trace that the replicas of `group` get; every group deals alike."""
    balancer = LoadBalancer(deployment.num_replicas)
    running: list[tuple[float, int, int, GenerateRequest]] = []
    """Heap of (when it ends, request id, rank, request)."""
    num_requests = 0
    for prompt in trace:
        while running and running[0][0] < prompt.arrival_seconds:
            _, _, ended_rank, ended = heapq.heappop(running)
            balancer.remove(ended_rank, ended)
        rank = balancer.choose(prompt.prompt_ids)
        ends = _ends(prompt, deployment)
        for end, request in zip(ends, as_requests(prompt, num_requests), strict=True):
            balancer.add(rank, request)
            heapq.heappush(running, (end, request.request_id, rank, request))
        num_requests += len(ends)
        if rank in group:
            yield prompt


def _ends(prompt: Prompt, deployment: Deployment) -> list[float]:
    """When its samples would end on a device that does nothing else."""
    hardware, model = deployment.hardware, deployment.model
    step_seconds = hardware.step_seconds + model.weight_bytes / hardware.bytes_per_second
    prefill_seconds = prompt.prompt_ids.size * model.flops_per_token / hardware.flops_per_second
    num_steps = prompt.output_lens.clip(max=prompt.max_tokens)
    ends = prompt.arrival_seconds + prefill_seconds + num_steps * step_seconds
    return ends.tolist()
