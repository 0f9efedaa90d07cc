"""``/metrics``: what Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from ..serving.engine import Engine


class EngineMetrics(Collector):
    """An engine's numbers, read when they are asked for.

    Parameters
    ----------
    engine : Engine
        Whose.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Give them."""
        stats = self._engine.stats
        yield CounterMetricFamily("llama2cpp_passes", "Passes over the weights.", stats.passes)
        yield CounterMetricFamily("llama2cpp_tokens", "Tokens that were sampled.", stats.generated_tokens)
        yield CounterMetricFamily("llama2cpp_accepted_tokens", "Of them, those proposed.", stats.accepted_tokens)
        yield CounterMetricFamily("llama2cpp_prompt_tokens", "Tokens of prompts, computed.", stats.prompt_tokens)
        yield CounterMetricFamily(
            "llama2cpp_reused_tokens", "Tokens of prompts, not computed again.", stats.reused_tokens
        )
        yield GaugeMetricFamily("llama2cpp_requests_running", "Requests that have a row of each pass.", stats.running)
        yield GaugeMetricFamily("llama2cpp_requests_waiting", "Requests that have none yet.", stats.waiting)
        yield GaugeMetricFamily(
            "llama2cpp_prefix_bytes", "Bytes that are kept for prompts to come.", stats.prefix_bytes
        )


def registry_of(engine: Engine) -> CollectorRegistry:
    """Make a registry with an engine's numbers alone."""
    registry = CollectorRegistry()
    registry.register(EngineMetrics(engine))
    return registry
