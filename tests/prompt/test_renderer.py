"""What vLLM finds out about a template by trying it: the place of system messages, and effort."""

import pytest

from extproc.errors import Unroutable
from extproc.prompt import Chat
from extproc.prompt.dialects import Dialect
from extproc.prompt.rawarray import RawArray
from extproc.prompt.renderer import Rendering, Templates
from extproc.prompt.template import ChatTemplate

ANYWHERE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system first') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
THINKS = "{{ 'think' if enable_thinking is not defined or enable_thinking else 'no' }}"
REFUSES = "{% if reasoning_effort == 'none' %}{{ raise_exception('none') }}{% endif %}x"


def templates(source: str) -> Templates:
    return Templates({"default": ChatTemplate(source, {})})


def anthropic(*items: dict[str, object], **fields: object) -> Chat:
    return Chat(RawArray.of(items), Dialect.ANTHROPIC, **fields)  # type: ignore[arg-type]


def text(source: str, chat: Chat) -> str:
    return Rendering(chat, templates(source)).whole(None).decode()


@pytest.mark.parametrize(
    ("source", "merges"),
    [
        (ANYWHERE, False),
        (FIRST, True),
        ("{{ strftime_now('%Y') }}", True),  # the probe has no such function
        ("{% generation %}{% endgeneration %}", True),  # nor such a block
        ("{{ messages[0].x.y }}", True),
    ],
)
def test_template_that_wants_the_system_message_first_is_found(source: str, merges: bool) -> None:
    assert templates(source).merges_system is merges


def test_inline_system_messages_stay_or_move_to_the_front() -> None:
    user = {"role": "user", "content": "u"}
    inline = {"role": "system", "content": [{"type": "text", "text": "i"}]}
    billing = {"role": "system", "content": "x-anthropic-billing-header: 1"}
    chat = anthropic(user, inline, billing, user, system="s")
    assert text(ANYWHERE, chat) == "[system]s[user]u[system]i[user]u"
    assert text(FIRST, chat) == "[system]si[user]u[user]u"
    assert text(FIRST, anthropic(user, inline, user)) == "[system]i[user]u[user]u"
    assert text(FIRST, anthropic(user, billing)) == "[user]u"


@pytest.mark.parametrize(
    ("source", "effort"), [(THINKS, "none"), (ANYWHERE, "low"), (REFUSES, "low")]
)
def test_thinking_is_disabled_in_the_way_that_the_template_knows(source: str, effort: str) -> None:
    assert templates(source).disabled_effort == effort
    options = {"reasoning_effort": "none", "enable_thinking": False}
    user = {"role": "user", "content": "u"}
    rendering = Rendering(anthropic(user, options=options), templates(source))
    assert rendering.options == {"reasoning_effort": effort, "enable_thinking": effort != "none"}


def test_effort_of_other_requests_is_as_sent() -> None:
    options = {"reasoning_effort": "none", "enable_thinking": False}
    chat = Chat.of([{"role": "user", "content": "u"}], options=options)
    assert Rendering(chat, templates(ANYWHERE)).options == options


@pytest.mark.parametrize(
    ("source", "local"),
    [
        (ANYWHERE, {"user", "assistant", "tool", "system"}),
        (FIRST, {"user", "assistant", "tool"}),
        (ANYWHERE + "{% if x == 'developer' %}{% endif %}", {"user", "system", "developer"}),
    ],
)
def test_message_that_moves_is_not_local(source: str, local: set[str]) -> None:
    rendering = Rendering(anthropic(), templates(source))
    for role in ("user", "assistant", "tool", "system", "developer"):
        assert rendering.is_local([{"role": role}]) or role not in local
    others = {"system", "developer"} - local
    assert not any(rendering.is_local([{"role": "user"}, {"role": role}]) for role in others)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ({"type": "hologram"}, "content_part_unknown"),
        ({"type": "tool_use", "name": "f"}, "tool_call_invalid"),
        ({"type": "thinking", "thinking": 3}, "content_part_invalid"),
        ("text", "content_part_invalid"),
    ],
)
def test_block_that_is_unknown_is_unroutable(block: object, reason: str) -> None:
    with pytest.raises(Unroutable, match=reason):
        text(ANYWHERE, anthropic({"role": "assistant", "content": [block]}))


@pytest.mark.parametrize("kind", ["tool_addition", "tool_removal"])
def test_change_of_tools_is_unroutable(kind: str) -> None:
    change = {"role": "system", "content": [{"type": kind, "tool": {}}]}
    with pytest.raises(Unroutable, match="tool_change"):
        text(ANYWHERE, anthropic({"role": "user", "content": "u"}, change))


@pytest.mark.parametrize(
    ("source", "loops"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        ("{% for m in messages %}{% for p in m.content %}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for p in m['content'] %}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for c in m.tool_calls %}{% endfor %}{% endfor %}", False),
        ("{% for m in messages[1:] %}{% for p in m.content %}{% endfor %}{% endfor %}", True),
        (
            "{% set a = messages %}{% set b = a[1:] %}{% for m in b %}"
            "{% for p in m.content | list %}{% endfor %}{% endfor %}",
            True,
        ),
        ("{% for m in others %}{% for p in m.content %}{% endfor %}{% endfor %}", False),
        ("{% for m in messages %}{% for p in content %}{% endfor %}{% endfor %}", True),
        (
            "{% macro w(x) %}{% for p in x %}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ w(m.content) }}{% endfor %}",
            True,
        ),
        (
            "{% macro w(x) %}{% for p in x %}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ w(x=m.content) }}{% endfor %}",
            True,
        ),
        (
            "{% macro w(x) %}{% for p in x %}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ w(m.role) }}{% endfor %}",
            False,
        ),
        (
            "{% macro w(content) %}{% for p in content %}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            False,
        ),
    ],
)
def test_template_that_loops_over_parts_is_found(source: str, loops: bool) -> None:
    assert ChatTemplate(source, {}).takes_parts is loops


def test_parts_reach_a_template_that_loops_over_them() -> None:
    source = "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = Chat.of([{"role": "user", "content": parts}, {"role": "user", "content": "c"}])
    assert text(source, chat) == "<a><b><c>"
