#!/bin/bash
# transformers 5.23.0 with tokenizers 0.23.3, apply_chat_template(return_assistant_tokens_mask=True).
#
# The mask says which tokens are the assistant's: what is trained on, or measured. A character outside of ASCII may be several
# tokens of a byte-level BPE. Where a reply ends with such a character, the mask ends after the first of them: the
# character's other tokens count as the prompt's. The same reply with a full stop behind it is whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
from importlib.metadata import version

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
bytes_only = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))  # a token for each byte
bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
bytes_only.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<|end|>")
tokenizer.chat_template = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
)


def masked(reply):
    messages = [{"role": "user", "content": "translate"}, {"role": "assistant", "content": reply}]
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    tokens = sum(out["assistant_masks"])
    print(f"reply {reply!r}: {len(reply.encode())} tokens, {tokens} of them in the mask")
    return tokens


print("transformers", version("transformers"), "tokenizers", version("tokenizers"))
assert masked("tea") == 3
for reply in ("caf\u00e9", "\u8336"):
    assert masked(reply + ".") == len(reply.encode()) + 1
    assert masked(reply) == len(reply[:-1].encode()) + 1, "this has changed: the last character's tokens are in the mask"
PYTHON
