"""Run as a process of its own by test_auto_classes.py: what transformers gives, with slimcore imported now or then.

Lines of JSON, each after one more step. Arguments: the order; a folder that only slimcore's class can load, and the
same disguised as an ordinary one; files of token ids and of the logits they should give; the families.
"""

import json
import sys
from importlib import import_module
from inspect import isroutine

OTHERS = ("GPT2LMHeadModel", "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "PreTrainedModel")
ORDER, WEIGHTS, DISGUISED, TOKENS, LOGITS, *FAMILIES = sys.argv[1:]


def classes():
    """Where each class of each family, and each function of it, was defined."""
    from transformers import LlamaForCausalLM, MistralForCausalLM, Trainer, pipeline

    found = {c.__name__: c for c in (LlamaForCausalLM, MistralForCausalLM, Trainer, pipeline)}
    transformers = import_module("transformers")
    names = {name for family in FAMILIES for name in import_module(f"transformers.models.{family}").__all__}
    found |= {name: getattr(transformers, name) for name in names.union(OTHERS) & set(dir(transformers))}
    inside = {f"{c}.{n}": getattr(kind, n) for c, kind in found.items() for n, f in vars(kind).items() if isroutine(f)}
    return {name: f"{value.__module__}.{value.__qualname__}" for name, value in (found | inside).items()}


def mappings():
    """What the Auto classes choose, how modules are found, and which configs were added."""
    from transformers.models.auto import configuration_auto, modeling_auto

    configs = {family: configuration_auto.CONFIG_MAPPING[family] for family in FAMILIES}
    chosen = {f: [c.__module__, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING[c].__module__] for f, c in configs.items()}
    names = configuration_auto.CONFIG_MAPPING_NAMES | modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    finders = [type(finder).__name__ for finder in sys.meta_path]
    return [chosen, names, finders], list(configuration_auto.CONFIG_MAPPING._extra_content)


def road(loader, folder, **options):
    """The module of the model that `loader` makes of `folder`, False where its logits are others, or the error."""
    import torch
    import transformers

    try:
        model = getattr(transformers, loader).from_pretrained(folder, **options)
    except Exception as error:  # noqa: BLE001 - which it is, is what is asked
        return f"{type(error).__name__}: {error}"
    return torch.equal(model(torch.load(TOKENS)).logits, torch.load(LOGITS)) and type(model).__module__


def tell(**further):
    """One line of what is so now."""
    told = {"classes": classes(), "mappings": mappings()}
    told |= {"auto": road("AutoModelForCausalLM", WEIGHTS), "stock": road("LlamaForCausalLM", WEIGHTS)} | further
    sys.stdout.write(f"\n{json.dumps(told)}\n")  # after a question that waits for an answer


if ORDER == "last":
    disguised = road("AutoModelForCausalLM", DISGUISED)
    tell(
        trusted=road("AutoModelForCausalLM", WEIGHTS, trust_remote_code=True), disguised=disguised,
        slimcore="slimcore" in sys.modules,
    )  # fmt: skip
    import slimcore

    tell()
elif ORDER == "first":
    import slimcore

    tell(models=[f for f in FAMILIES if f"transformers.models.{f}.modeling_{f}" in sys.modules])
else:
    import slimcore.bench.suite.plugin
    import slimcore.cli

    heavy = [name for name in ("torch", "transformers") if name in sys.modules]
    slimcore.load(WEIGHTS)
    tell(heavy=heavy)
