"""Random messages of any type, from its descriptor."""

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_TEXT = st.text(st.characters(codec="utf-8"), max_size=8)

_SCALARS: dict[int, st.SearchStrategy[object]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_STRING: _TEXT,
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
}


def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of this type: each field present or not, at most one of a oneof."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> Message:
        return draw(_filled(descriptor, depth=0))

    return draw_one()


@st.composite
def _filled(draw: st.DrawFn, descriptor: Descriptor, depth: int) -> Message:
    message = GetMessageClass(descriptor)()
    if isinstance(message, Duration):
        # In whole milliseconds: the other implementation has no nanoseconds.
        message.FromMilliseconds(draw(st.integers(0, 3_600_000)))
        return message
    taken: set[str] = set()
    fields = draw(st.permutations(list(descriptor.fields)))
    for field in fields:
        oneof = field.containing_oneof
        # Struct and Value contain each other.
        if (oneof and oneof.name in taken) or (depth > 5 and field.message_type):
            continue
        if draw(st.booleans()):
            if oneof:
                taken.add(oneof.name)
            _fill(draw, message, field, depth)
    return message


def _fill(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    target = getattr(message, field.name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        for key in draw(st.lists(_TEXT, max_size=2)):
            target[key].CopyFrom(draw(_filled(value.message_type, depth + 1)))
    elif field.is_repeated:
        for _ in range(draw(st.integers(0, 2))):
            if field.message_type:
                target.add().CopyFrom(draw(_filled(field.message_type, depth + 1)))
            else:
                target.append(draw(_SCALARS[field.type]))
    elif field.message_type:
        target.CopyFrom(draw(_filled(field.message_type, depth + 1)))
        target.SetInParent()
    elif field.enum_type:
        setattr(message, field.name, draw(st.sampled_from(list(field.enum_type.values_by_number))))
    else:
        setattr(message, field.name, draw(_SCALARS[field.type]))
