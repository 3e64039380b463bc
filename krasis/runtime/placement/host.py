"""The plan without a GPU: the engine's memory, and the speed that host memory and the processor allow."""

from dataclasses import dataclass

from krasis import models
from krasis.models.conform import spec_of
from krasis.pack.manifest import Manifest
from krasis.runtime.backend import KvDtype
from krasis.runtime.cpu import LAYOUTS
from krasis.runtime.placement.speed import attention_products
from krasis.runtime.plan import Plan, check, chosen, plan
from krasis.runtime.rates import Rates
from krasis.runtime.work import bytes_per_token, products_per_token


@dataclass(frozen=True)
class HostPlan:
    """`notes` say what will be slow. Parts of seconds are as those of `krasis.runtime.placement.plan.Plan`."""

    memory: Plan
    prompt: int
    notes: list[str]
    prefill_parts: dict[str, float]
    decode_parts: dict[str, float]


def plan_host(
    manifest: Manifest, rates: Rates, context: int, kv: KvDtype, prompt: int, ram: int, where: object = ""
) -> HostPlan:
    """For `ram` bytes of memory. Raises FitError with the number that would fit, InputError for a bad spec."""
    spec = spec_of(manifest, where)
    memory = plan(spec, manifest, context, kv, LAYOUTS)
    notes = check(memory, ram)
    prompt = min(prompt, context)
    segments = chosen(manifest, LAYOUTS)
    states = models.of(spec).states(spec)
    products = prompt * products_per_token(spec, segments) + attention_products(spec, states, prompt)
    read = bytes_per_token(spec, segments, states, kv, prompt)
    return HostPlan(
        memory,
        prompt,
        notes,
        {"arithmetic": products / rates.host_products, "host memory": memory.weights / rates.host_read},
        {"host memory": read / rates.host_read},
    )
