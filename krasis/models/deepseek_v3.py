"""DeepSeek-V3: DeepSeek-V2 with sigmoid scores, and a bias on them that chooses experts but does not weigh them."""

from collections.abc import Mapping
from typing import Any

from krasis.models import deepseek_v2
from krasis.models.config import Config
from krasis.models.deepseek_v2 import build, files, ignored, moe_layers, states

__all__ = ["Spec", "build", "files", "ignored", "moe_layers", "parse_config", "states"]


class Spec(deepseek_v2.Spec, frozen=True, tag="deepseek_v3"):
    """The fields of DeepSeek-V2."""


def parse_config(tree: Mapping[str, Any]) -> Spec:
    config = Config(tree)
    config.require("scoring_func", "sigmoid")
    config.require("topk_method", "noaux_tc")
    fields = deepseek_v2.read(config) | deepseek_v2.read_groups(config)
    spec = Spec(**fields, scores="sigmoid", corrected=True, group_votes=2)
    deepseek_v2.check(config, spec)
    return spec
