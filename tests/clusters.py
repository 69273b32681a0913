"""A real Ray cluster of two nodes on this machine, for tests."""

import warnings
from contextlib import contextmanager

import ray


@contextmanager
def two_nodes():
    """Two nodes of one CPU each, joined by this process; they end with the block."""
    from ray.cluster_utils import Cluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own advice
        nodes = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()
