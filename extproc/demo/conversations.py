"""The conversations that the demo plays: long system prompts, some of them shared, short questions.

What the assistants know is generated, so that the prompts are as long as real ones (some thousand
tokens) and this file is not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, product
from typing import Any

from extproc.demo.openai import CHAT, COMPLETIONS


def _catalogue() -> str:
    kinds = ("rain jacket", "wool sweater", "trail shoe", "day pack", "sleeping bag", "gas stove")
    makers = ("Nordlys", "Fjell & Son", "Calder", "Tramontane", "Kestrel", "Ridgeway")
    return "\n".join(
        f"- {1000 + 37 * i}: {maker} {kind}, {29 + 13 * i % 170} EUR, {200 + 71 * i % 900} g, "
        f"{'in stock' if i % 3 else 'back in ' + str(1 + i % 5) + ' weeks'}, rated {3 + i % 3}/5"
        for i, (maker, kind) in enumerate(product(makers, kinds))
    )


def _tables() -> str:
    areas = ("orders", "payments", "returns", "customers", "shipments", "products", "visits")
    columns = ("id bigint", "created_at timestamp", "state text", "amount_cents bigint")
    return "\n".join(
        f"create table {area}_{year} ({', '.join(columns)}, {area[:-1]}_ref bigint not null); "
        f"-- about {17 * (i + 3) % 90 + 10} million rows, partitioned by month, kept 7 years"
        for i, (area, year) in enumerate(product(areas, range(2021, 2026)))
    )


def _rules() -> str:
    subjects = (
        "A public function",
        "A test",
        "An error message",
        "A time-out",
        "A log line",
        "A default value",
        "A lock",
        "A migration",
    )
    demands = (
        "is named for what it does, and the review says so when it is not",
        "has an owner, and the owner is asked before it changes its meaning",
        "can be understood without opening a second file",
        "states its unit, and the unit is checked against its callers",
    )
    return "\n".join(
        f"{i}. {subject} {demand}."
        for i, (subject, demand) in enumerate(product(subjects, demands))
    )


SHOP = (
    "You are the assistant of an outdoor shop. Answer in the customer's language, in at most three "
    "sentences. Recommend only what is in the catalogue below, name the article number and the "
    "price, and say when something is not in stock. Never promise a delivery date. Returns are "
    f"free for 60 days if the article is unused.\n\nCatalogue:\n{_catalogue()}"
)
REVIEW = (
    "You review pull requests of a payments service written in Python. Name the file and line, say "
    "what goes wrong and for whom, and suggest the smallest change that repairs it. Do not comment "
    f"on style that the formatter settles. The team's rules:\n{_rules()}"
)
ANALYST = (
    "A transcript of a data analyst who answers with one SQL query for PostgreSQL 16 and one "
    "sentence that says what it counts. The schema:\n" + _tables()
)

SHOP_QUESTIONS = (
    "I walk in the Alps for a week in October. What should I take, for under 300 euros?",
    "Is there something lighter than the jacket you named?",
    "And if it snows, is the sleeping bag warm enough?",
    "What would both of them together weigh?",
    "Can I send the shoes back after I have tried them on a short walk?",
    "Which of all these do your customers like best?",
)
REVIEW_QUESTIONS = (
    "def refund(order, amount):\n"
    "    if amount > order.paid:\n        raise ValueError('too much')\n"
    "    gateway.refund(order.id, amount)\n    order.paid -= amount\n    order.save()",
    "The gateway retries by itself. Does that change what you said?",
    "What if two refunds for one order arrive at the same time?",
    "How would you test that without sleeping?",
    "Write the message of the commit, please.",
    "Anything that you would leave for a second pull request?",
)
ANALYST_QUESTIONS = (
    "How many orders of 2025 were returned within ten days?",
    "The same by month, please, and as a share of all orders.",
    "Only for customers whose first order was in 2024.",
    "Which shipments took longest in those months?",
    "Could the query use the partitions better?",
    "And what did those returns cost us in payments?",
)


@dataclass(slots=True)
class Conversation:
    """One conversation as its client keeps it: everything said so far is sent again each turn."""

    name: str
    system: str
    questions: Sequence[str]
    chat: bool
    stream: bool
    said: list[tuple[str, str]] = field(default_factory=list)
    """(question, answer) of each turn so far."""

    @property
    def path(self) -> str:
        """Of the API that the conversation uses."""
        return CHAT if self.chat else COMPLETIONS

    @property
    def question(self) -> str:
        """Of the next turn; they begin again when all were asked."""
        return self.questions[len(self.said) % len(self.questions)]

    def body(self) -> dict[str, Any]:
        """What the next turn's body says, besides the model."""
        prompt = {"messages": self._messages()} if self.chat else {"prompt": self._transcript()}
        if not self.stream:
            return prompt
        return prompt | {"stream": True, "stream_options": {"include_usage": True}}

    def _messages(self) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self.system}]
        for question, answer in self.said:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        return [*messages, {"role": "user", "content": self.question}]

    def _transcript(self) -> str:
        turns = [f"Question: {question}\nAnswer:{answer}\n" for question, answer in self.said]
        return "\n".join([self.system, "", *turns, f"Question: {self.question}\nAnswer:"])


def conversations(count: int) -> list[Conversation]:
    """So many conversations: every fourth is a completion, every second is streamed."""
    return list(islice(_conversations(), count))


def _conversations() -> Iterator[Conversation]:
    kinds = (
        ("shop", SHOP, SHOP_QUESTIONS, True),
        ("review", REVIEW, REVIEW_QUESTIONS, True),
        ("sql", ANALYST, ANALYST_QUESTIONS, False),
        ("shop", SHOP, SHOP_QUESTIONS, True),
    )
    for number, (name, system, questions, chat) in enumerate(cycle(kinds), 1):
        yield Conversation(
            name=f"{name} {number}",
            system=system,
            questions=[f"(customer {number}) {questions[0]}", *questions[1:]],
            chat=chat,
            stream=number % 2 == 1,
        )
