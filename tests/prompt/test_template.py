"""Chat templates render as with transformers' `apply_chat_template`."""

from typing import Any

import pytest

from extproc.errors import ConfigError, Unroutable
from extproc.prompt.template import ChatTemplate

HELLO = [{"role": "user", "content": "hello"}]


def render(source: str, messages: list[dict[str, Any]] = HELLO, **options: Any) -> str:
    return ChatTemplate(source, {}).render(messages, None, options)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if true %}\n  a\n{% endif %}\nb", "  a\nb"),
        ("   {% if true %}a{% endif %}", "a"),
        (
            "{% for m in [1,2,3,4] %}{% if m == 2 %}{% continue %}{% endif %}{{ m }}{% endfor %}",
            "134",
        ),
        ("{% for m in [1,2,3,4] %}{% if m == 3 %}{% break %}{% endif %}{{ m }}{% endfor %}", "12"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}", "1"),
        ("{{ '<é & \"x\">' | tojson }}", '"<é & \\"x\\">"'),
        ("{{ {'b': 1, 'a': [none, true]} | tojson }}", '{"b": 1, "a": [null, true]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", '{"a": 2, "b": 1}'),
        ("{{ {'b': 1} | tojson(indent=2) }}", '{\n  "b": 1\n}'),
        ("{{ {'b': 1} | tojson(separators=(',', ':')) }}", '{"b":1}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{{ add_generation_prompt }} {{ tools }} {{ documents }}", "False None None"),
        ("{{ missing is defined }}{{ missing }}", "False"),
        ("{{ messages[0].content }}{{ messages[0]['role'] }}", "hellouser"),
    ],
)
def test_template_renders_as_with_transformers(source: str, text: str) -> None:
    assert render(source) == text


def test_options_are_variables_of_the_template() -> None:
    assert render("{{ enable_thinking }}", enable_thinking=False) == "False"
    assert render("{{ add_generation_prompt }}", add_generation_prompt=True) == "True"


def test_date_is_that_of_today() -> None:
    assert render("{{ strftime_now('%Y') }}").isdigit()


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("{{ raise_exception('no') }}", "TemplateError"),
        ("{{ messages[9].content.x }}", "UndefinedError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ undefined() | tojson }}", "UndefinedError"),
        ("{% for x in range(1000000) %}{% endfor %}", "OverflowError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    ],
)
def test_failing_template_is_unroutable(source: str, error: str) -> None:
    with pytest.raises(Unroutable) as unroutable:
        render(source)
    assert str(unroutable.value) == f"template_failed: {error}"


def test_source_that_is_no_template_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"^chat\.jinja:2: not a Jinja template: "):
        ChatTemplate("a\n{% if %}", {}, "chat.jinja")


TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}"
TRIMMED = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}<end>{% endfor %}"


def test_continued_final_message_stays_open() -> None:
    messages = [*HELLO, {"role": "assistant", "content": "I was "}]
    text = render(TURNS, messages, continue_final_message=True)
    assert text == "[user]hello<end>[assistant]I was "
    text = render(TRIMMED, messages, continue_final_message=True)
    assert text == "[user]hello<end>[assistant]I was"


def test_nothing_to_continue_is_unroutable() -> None:
    for messages, source in (([], TURNS), ([{"role": "assistant"}], TURNS), (HELLO, "gone")):
        with pytest.raises(Unroutable, match="nothing_to_continue"):
            render(source, messages, continue_final_message=True)
