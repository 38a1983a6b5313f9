"""Built-in chat templates, chosen by name, in the Jinja dialect of transformers."""

from __future__ import annotations

_ALPACA = """\
{%- for message in messages -%}
    {%- if not loop.first -%}{{- '\\n\\n' -}}{%- endif -%}
    {%- if message.role == 'user' -%}
        {{- '### Instruction:\\n' ~ message.content | trim -}}
    {%- elif message.role == 'user_context' -%}
        {{- '### Input:\\n' ~ message.content | trim -}}
    {%- elif message.role == 'assistant' -%}
        {{- '### Response:\\n' ~ message.content | trim -}}
    {%- else -%}
        {{- message.content | trim -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '\\n\\n### Response:\\n' -}}
{%- endif -%}
"""

_CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_EXAONE = """\
{%- if messages and messages[0].role != 'system' -%}
    {{- '[|system|][|endofturn|]\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '[|' ~ message.role ~ '|]' ~ message.content -}}
    {{- '\\n' if message.role == 'user' else '[|endofturn|]\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '[|assistant|]' -}}
{%- endif -%}
"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' -}}
    {{- message.content | trim ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

_MISTRAL = """\
{{- bos_token -}}
{%- set turns = namespace(system='', user=true) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' and loop.first -%}
        {%- set turns.system = message.content ~ '\\n\\n' -%}
    {%- elif message.role == 'user' and turns.user -%}
        {{- ' [INST] ' ~ turns.system ~ message.content ~ ' [/INST]' -}}
        {%- set turns.system = '' -%}
        {%- set turns.user = false -%}
    {%- elif message.role == 'assistant' and not turns.user -%}
        {{- ' ' ~ message.content ~ eos_token -}}
        {%- set turns.user = true -%}
    {%- else -%}
        {{- raise_exception('after a system message user and assistant must alternate') -}}
    {%- endif -%}
{%- endfor -%}
"""

TEMPLATES = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "exaone": _EXAONE,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
}
"""Template text by name; the tokenizer must have the special tokens of its template."""
