"""Request bodies → the tokens that the engine will see → block keys. Pure but for `load`."""

from extproc.prompt.blocks import block_keys, root_seed
from extproc.prompt.body import is_llm_path, parse_body
from extproc.prompt.ids import pack_ids, unpack_ids
from extproc.prompt.modelname import FoundModel, answer_renamer, find_model
from extproc.prompt.reportmode import without_report_mode
from extproc.prompt.served import ServedModel
from extproc.prompt.types import Chain, Chat, Plain, Prompt, TooNew

__all__ = [
    "Chain",
    "Chat",
    "FoundModel",
    "Plain",
    "Prompt",
    "ServedModel",
    "TooNew",
    "answer_renamer",
    "block_keys",
    "find_model",
    "is_llm_path",
    "pack_ids",
    "parse_body",
    "root_seed",
    "unpack_ids",
    "without_report_mode",
]
