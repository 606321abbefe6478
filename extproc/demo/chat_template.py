"""The chat template of the demo's tokenizer: ChatML, with tools and reasoning, written for it.

It behaves as templates of current open models do:

- the tools go into the first system turn, as one JSON schema a line;
- a call of the assistant is a `<tool_call>` with the JSON of its name and arguments, and what the
  tool answered is a turn of the role `tool`;
- reasoning of earlier turns is left out, reasoning since the last user message (a tool loop) stays;
- `enable_thinking: false` opens the answer with reasoning that is already closed.

An answer is rendered in the next prompt as it was generated, so its blocks are hit again.
"""

CHAT_TEMPLATE = """\
{%- set seen = namespace(user=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set seen.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- set system_first = messages and messages[0].role == 'system' -%}
{%- if tools -%}
  {{- '<|im_start|>system\\n' -}}
  {%- if system_first -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}
  {{- 'You may call these functions. Each line is the schema of one of them:\\n' -}}
  {%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
  {{- 'To call one, write its name and arguments as JSON:\\n' -}}
  {{- '<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if not (loop.first and tools and system_first) -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.role == 'assistant' and message.reasoning_content and loop.index0 > seen.user -%}
      {{- '<think>\\n' + message.reasoning_content | trim + '\\n</think>\\n\\n' -}}
    {%- endif -%}
    {{- message.content or '' -}}
    {%- for call in message.tool_calls or [] -%}
      {%- set function = call.function if call.function else call -%}
      {%- if not loop.first or message.content -%}{{- '\\n' -}}{%- endif -%}
      {{- '<tool_call>\\n{"name": ' + function.name | tojson + ', "arguments": ' -}}
      {%- if function.arguments is string -%}
        {{- function.arguments -}}
      {%- else -%}
        {{- function.arguments | tojson -}}
      {%- endif -%}
      {{- '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
  {%- if enable_thinking is defined and not enable_thinking -%}
    {{- '<think>\\n\\n</think>\\n\\n' -}}
  {%- endif -%}
{%- endif -%}
"""
