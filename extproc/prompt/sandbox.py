"""Jinja's immutable sandbox, quicker for plain data and bounded in what a template may do.

The sandbox answers each `message.content` and each `text.strip()` through general checks that cost
more than the work. Here exact types come first: an object of `json` is a dict, a text a str, a loop
a LoopContext; for these, and for the names listed, the general checks always end in the same
answer. Everything else goes through Jinja's own checks, so what is refused stays refused.
"""

from collections.abc import Callable, Iterator
from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_STEPS = 2_000_000
"""Loop iterations and calls of one render: a chat of 100,000 messages needs some ten each."""

_MAX_REPEATED = 1 << 20
"""Characters or items that one `*` may make."""

_STEPS = "homing steps"
"""Where a render's count is kept: the blank keeps the name out of a template's reach."""

_DICT_NAMES = frozenset(dir(dict))
_DICT_METHODS = frozenset({"get", "items", "keys", "values"})
_STR_METHODS = frozenset(
    {
        "capitalize",
        "count",
        "endswith",
        "find",
        "index",
        "isdigit",
        "isspace",
        "join",
        "lower",
        "lstrip",
        "partition",
        "replace",
        "rfind",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "title",
        "upper",
    }
)
_LOOP_NAMES = frozenset(
    {
        "cycle",
        "depth",
        "depth0",
        "first",
        "index",
        "index0",
        "last",
        "length",
        "nextitem",
        "previtem",
        "revindex",
        "revindex0",
    }
)


_SPACE_NAMES = frozenset({"__class__", "_Namespace__attrs"})
"""What is read of a namespace itself, and not of its names."""


class TooManyStepsError(RuntimeError):
    """The template did more than any chat needs; it may loop for ever."""


class _Steps:
    """What one render may still do."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_STEPS

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise TooManyStepsError


class _Space(Namespace):
    """A namespace whose names are read without a call. A template cannot tell it from Jinja's."""

    __getattribute__ = object.__getattribute__

    _Namespace__attrs: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self._Namespace__attrs[name]
        except KeyError:
            raise AttributeError(name) from None


class _CodeGenerator(CodeGenerator):
    """Reads a dict's key, a namespace's and a loop's names without a call: most of the work."""

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:  # noqa: N802
        name, further = node.attr, ""
        if name in _LOOP_NAMES:
            quick, kind = f"_of.{name}", "LoopContext"
        elif name not in _DICT_NAMES:
            quick, kind = (
                f"_of[{name!r}] if {name!r} in _of else undefined(obj=_of, name={name!r})",
                "dict",
            )
            names = "_of._Namespace__attrs"
            if not name.startswith("_"):
                further = f" {names}[{name!r}] if type(_of) is environment.space"
                further += f" and {name!r} in {names} else"
        else:
            super().visit_Getattr(node, frame)
            return
        self.write(f"(({quick}) if type(_of := ")
        self.visit(node.node, frame)
        self.write(f") is {kind} else{further} environment.getattr(_of, {name!r}))")


class ChatSandbox(ImmutableSandboxedEnvironment):
    """Renders the same text as `ImmutableSandboxedEnvironment`, or fails.

    Fails where that would run or grow without bound: more than MAX_STEPS iterations and calls, or
    a repetition of over a million characters. What is rendered must be given `steps()` among its
    variables.
    """

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset({"*", "**"})
    space = _Space

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters[_STEPS] = _counted
        self.globals["namespace"] = _Space
        # Compiled templates call these through the instance: a closure saves the bound method.
        self.getattr = _quick_getattr(self.getattr, self.undefined)  # type: ignore[method-assign, assignment]
        self.call = _quick_call(self.call)  # type: ignore[method-assign]

    @staticmethod
    def steps() -> dict[str, Any]:
        """The variable in which one render's steps are counted."""
        return {_STEPS: _Steps()}

    def tree(self, source: str) -> nodes.Template:
        """The template as it is written, without what counts its steps."""
        return super()._parse(source, None, None)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _STEPS, [], [], None, None)
        return template

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`*` and `**`, refused where the result would be huge."""
        if operator == "*":
            for items, times in ((left, right), (right, left)):
                if isinstance(items, str | list | tuple) and isinstance(times, int):
                    _bound(len(items) * times)
        elif isinstance(left, int) and isinstance(right, int):
            _bound(left.bit_length() * right)
        return super().call_binop(context, operator, left, right)


def _bound(size: int) -> None:
    if size > _MAX_REPEATED:
        raise TooManyStepsError


@pass_context
def _counted(context: Context, iterable: Any) -> Any:
    """What a `for` loops over, its length taken from the render's steps."""
    steps = context.parent[_STEPS]
    try:
        size = len(iterable)
    except TypeError:
        return _counted_lazily(steps, iterable)
    steps.take(size + 1)
    return iterable


def _counted_lazily(steps: _Steps, iterable: Any) -> Iterator[Any]:
    for item in iterable:
        steps.take(1)
        yield item


def _quick_getattr(
    general: Callable[[Any, str], Any], undefined: Callable[..., Any]
) -> Callable[[Any, str], Any]:
    def getattr_by_type(obj: Any, name: str) -> Any:
        kind = type(obj)
        if kind is dict:
            if name not in _DICT_NAMES:
                return obj[name] if name in obj else undefined(obj=obj, name=name)
            if name in _DICT_METHODS:
                return getattr(obj, name)
        elif kind is str:
            if name in _STR_METHODS:
                return getattr(obj, name)
        elif kind is LoopContext and name in _LOOP_NAMES:
            return getattr(obj, name)
        elif kind is _Space and name not in _SPACE_NAMES:
            names = obj._Namespace__attrs
            if name not in names:
                return undefined(obj=obj, name=name)
            if not name.startswith("_"):
                return names[name]
        return general(obj, name)

    return getattr_by_type


def _quick_call(general: Callable[..., Any]) -> Callable[..., Any]:
    def call_by_type(context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if type(obj) is BuiltinMethodType:
            kind = type(obj.__self__)
            name = obj.__name__
            if (kind is str and name in _STR_METHODS) or (kind is dict and name in _DICT_METHODS):
                kwargs.pop("_loop_vars", None)
                kwargs.pop("_block_vars", None)
                return obj(*args, **kwargs)
        context.parent[_STEPS].take(1)
        return general(context, obj, *args, **kwargs)

    return call_by_type
