"""What a worker needs, imported once in the process that tests fork their workers from; its canary is a short one."""

import gc

import transformers.models.llama.modeling_llama  # noqa: F401

import slimcore.bench.measure.generation
import slimcore.bench.measure.machine
import slimcore.bench.measure.software
import slimcore.bench.measure.subject
from slimcore.bench.grid import limit
from slimcore.bench.measure import canary

canary.CANARY = limit.CANARY | {"cpu": (64, 2**16)}
limit.CANARY = canary.CANARY
slimcore.bench.measure.machine.machine_key("cpu")
gc.collect()
gc.freeze()
