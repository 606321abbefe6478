"""The quick sandbox renders what Jinja's own renders, refuses what it refuses, and has bounds."""

from random import Random
from typing import Any

import pytest
from jinja2 import nodes
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from extproc.errors import Unroutable
from extproc.prompt import sandbox as sandbox_module
from extproc.prompt.dialects import tools_of
from extproc.prompt.normalise import normalise_messages, normalise_tools
from extproc.prompt.sandbox import ChatSandbox, TooManyStepsError
from extproc.prompt.template import ChatTemplate, GenerationBlock
from tests.prompt.conversations import growing
from tests.prompt.families import FAMILIES, templates

OPTIONS: dict[str, Any] = {
    "trim_blocks": True,
    "lstrip_blocks": True,
    "extensions": [GenerationBlock, loopcontrols],
}


def run(source: str, **values: Any) -> str:
    template = ChatSandbox(**OPTIONS).from_string(source)
    return template.render(**values, **ChatSandbox.steps())


def run_slowly(source: str, **values: Any) -> str:
    return ImmutableSandboxedEnvironment(**OPTIONS).from_string(source).render(**values)


ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ {}.__class__ }}",
    "{{ d.__init__.__globals__ }}",
    "{{ d['__class__'] }}",
    "{{ d | attr('__class__') }}",
    "{{ [d] | map(attribute='__class__') | list }}",
    "{{ d.get.__self__ }}",
    "{{ s.strip.__self__ }}",
    "{{ s.strip.__call__ }}",
    "{{ f.__globals__ }}",
    "{{ f.__code__ }}",
    "{{ f.func_code }}",
    "{{ (1).__class__ }}",
    "{% for x in [1] %}{{ loop.__class__ }}{{ loop._iterator }}{% endfor %}",
    "{% set ns = namespace(a=1) %}{{ ns.__class__ }}{{ ns._Namespace__attrs }}",
    "{% set ns = namespace(a=1) %}{{ ns.__init__ }}{{ ns.__getattr__ }}{{ ns.__dict__ }}",
    "{% set ns = namespace(_a=1) %}{{ ns._a }}",
    "{% set ns = namespace(a='{0.__class__}') %}{{ ns.a.format(1) }}",
    "{% set ns = namespace(a=''.format) %}{{ ns.a.__self__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__class__ }}{{ m._func }}",
    "{{ self.__init__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ lipsum.__globals__ }}",
    "{{ '{0.__class__}'.format(s) }}",
    "{{ '{0.__class__.__mro__}'.format(d) }}",
    "{{ '{a.__class__}'.format_map({'a': s}) }}",
    "{{ ('{0.__class__}' | string).format(s) }}",
    "{{ [s] | map('format', d) | list }}",
    "{% set x = s.format %}{{ x(d) }}",
    "{{ (['{0.__class__}'.format] | first)(s) }}",
    "{{ d.update({'k': 1}) }}{{ d }}",
    "{{ d.pop('a') }}{{ d.clear() }}",
    "{{ d.setdefault('z', 1) }}",
    "{{ l.append(1) }}{{ l }}",
    "{{ l.sort() }}{{ l.extend([1]) }}",
    "{{ gen().gi_frame }}",
    "{{ context }}{{ environment }}{{ homing }}{{ _of }}",
    "{{ unsafe() }}",
]


class Unsafe:
    unsafe_callable = True

    def __call__(self) -> str:
        return "called"


def outcome(runner: Any, source: str) -> str:
    def numbers() -> Any:
        yield 1

    values = {"d": {"a": "x"}, "s": "{0}", "l": [2, 1], "f": outcome, "gen": numbers}
    try:
        return str(runner(source, **values, unsafe=Unsafe()))
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize("source", ESCAPES)
def test_escape_ends_as_in_jinjas_own_sandbox(source: str) -> None:
    assert outcome(run, source) == outcome(run_slowly, source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ s.__class__ }}{{ ''.__class__.__mro__ }}",
        "{{ d.pop('a') }}",
        "{{ d.update({'k': 1}) }}",
        "{{ l.append(1) }}",
        "{{ unsafe() }}",
    ],
)
def test_escape_is_refused(source: str) -> None:
    assert outcome(run, source) == SecurityError.__name__


PLAIN = [
    "{{ d.a }}{{ d.b }}{{ d.b is defined }}{{ d['a'] }}{{ d.items() | list }}{{ d.get('q', 3) }}",
    "{{ d.items }}{{ odd.items }}{{ odd.get }}{{ odd.copy is defined }}",
    "{{ d.keys() | list }}{{ d.values() | list }}{{ d.copy() }}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for x in l %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}"
    "{{ loop.revindex }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }}"
    "{{ loop.missing }}{% endfor %}",
    "{% for x in l recursive %}{{ x }}{{ loop([]) }}{{ loop.depth }}{% endfor %}",
    "{% for x in l if x > 1 %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in [] %}{{ x }}{% else %}none{% endfor %}{% for x in u %}x{% endfor %}",
    "{% for c in s.split('x') %}{{ c }}{% endfor %}",
    "{% for x in l | map('string') %}{{ x }}{% endfor %}",
    "{% set loop = odd %}{{ loop.index0 }}{{ odd.first }}{{ odd.last }}",
    "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns.b is defined }}",
    "{% set ns = namespace(d, items=2, index0=4) %}{{ ns.items }}{{ ns.index0 }}{{ ns.c[0] }}"
    "{{ ns }}{{ ns['a'] }}{{ ns | attr('a') }}{{ ns.keys is defined }}{{ ns.none is defined }}",
    "{% set ns = namespace() %}{% set loop = ns %}{% set ns.length = 3 %}{{ loop.length }}",
    "{{ d.none }}{{ d.none is none }}{{ d.none or 'or' }}{{ d['none'] is defined }}{{ d._none }}",
    "{{ s.strip('x').upper() }}{{ s.split('x')[-1] }}{{ s.startswith('x') }}",
    "{{ s.join(['a', 'b']) }}{{ s.title() }}{{ s.missing }}{{ s.encode is defined }}",
    "{{ '{} {}'.format(1, s) }}{{ '%s' % s }}{{ '-' * 3 }}{{ 2 ** 8 }}{{ l * 2 }}{{ 2 * l }}",
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}"
    "{{ m(1) }}{{ m(1, b=3) }}{% call m(9) %}called{% endcall %}",
    "{{ l[0] }}{{ l[-1:] }}{{ l[5] }}{{ l | length }}{{ range(3) | list }}{{ d | tojson }}",
    "{{ u }}{{ u is defined }}{{ (u | default('z')).strip() }}",
    "{{ u.x }}",
    "{{ d.a.x.y }}",
    "{{ cycler('a', 'b').next() }}{{ joiner(',')() }}{{ dict(a=1).a }}",
    "{{ d.a.x }}{{ odd.loop.index0 }}{{ none.x is defined }}",
]


@pytest.mark.parametrize("source", PLAIN)
def test_plain_things_render_as_in_jinjas_own_sandbox(source: str) -> None:
    values = {
        "d": {"a": "x", "c": [1]},
        "odd": {"items": 1, "index0": 7, "first": "f", "get": "g", "loop": {"index0": 5}},
        "s": "x{y}x z",
        "l": [3, 1, 2],
    }
    texts = []
    for runner in (run, run_slowly):
        try:
            texts.append(runner(source, **values))
        except UndefinedError as error:
            texts.append(str(error))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "name", ["qwen3", *[pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:]]]
)
def test_families_render_as_in_jinjas_own_sandbox(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = templates(name)
    monkeypatch.setattr(ChatTemplate, "_sandbox", slow_sandbox)
    slow = templates(name)
    rendered = 0
    for seed in range(60):
        for chat in growing(Random(seed), 5):
            messages = normalise_messages(chat.messages.decoded(), quick.takes_parts)
            tools = normalise_tools(tools_of(chat))
            texts = []
            for template in (quick, slow):
                try:
                    texts.append(template.render(messages, tools, chat.options))
                except Unroutable as error:
                    texts.append(str(error))
            assert texts[0] == texts[1], f"seed {seed}"
            rendered += "template_failed" not in texts[0]
    assert rendered > 50


_quick_sandbox = ChatTemplate._sandbox


class SlowSandbox(ImmutableSandboxedEnvironment):
    def tree(self, source: str) -> nodes.Template:
        return self.parse(source)


def slow_sandbox(template: ChatTemplate) -> SlowSandbox:
    quick = _quick_sandbox(template)
    slow = SlowSandbox(**OPTIONS)
    slow.filters["tojson"] = quick.filters["tojson"]
    for name in ("raise_exception", "strftime_now"):
        slow.globals[name] = quick.globals[name]
    return slow


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) | select %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% for x in [l] recursive %}{{ loop([l, l]) if loop.depth < 60 }}{% endfor %}",
        "{{ 'x' * 9999999999 }}",
        "{{ 9999999999 * 'x' }}",
        "{{ [1] * 9999999999 }}",
        "{{ 2 ** 99999999999 }}",
    ],
)
def test_template_that_would_run_for_ever_is_stopped(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_module, "MAX_STEPS", 10_000)
    with pytest.raises(TooManyStepsError):
        run(source)


@pytest.mark.parametrize(
    ("call", "counted"),
    [
        ("s.strip()", False),
        ("d.get('a')", False),
        ("l.index(1)", True),
        ("s.encode()", True),
        ("range(1)", True),
        ("namespace()", True),
    ],
)
def test_every_call_is_a_step_but_those_of_plain_texts_and_dicts(
    call: str, counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of built-in methods, which Jinja's own checks are for."""
    monkeypatch.setattr(sandbox_module, "MAX_STEPS", 10)
    source = f"{{{{ {call} }}}}" * 11
    values = {"s": " x ", "d": {"a": 1}, "l": [1]}
    if counted:
        with pytest.raises(TooManyStepsError):
            run(source, **values)
    else:
        assert run(source, **values)


def test_steps_are_counted_for_each_render() -> None:
    sandbox = ChatSandbox(**OPTIONS)
    template = sandbox.from_string("{% for x in range(90000) %}{% endfor %}")
    for _ in range(30):  # together more than one render may take
        template.render(**ChatSandbox.steps())


def test_chat_of_100_000_messages_has_steps_to_spare() -> None:
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant")] * 50_000
    assert len(templates("qwen3").render(messages)) > 2_000_000
