"""The default policy: price what a pick costs everybody."""

from dataclasses import dataclass

from extproc.routing.returns import delay_s
from extproc.routing.views import InstanceView, PoolView, Ranking, Score, Turn

COPY_SHARE = 0.5
"""Of what was waited for want of another holder, what it may cost to have one. At 1 prefixes are
copied that a queue would have served as soon (llm-d's shared prefixes, seeds 101 and 102: p90 5 %
up, at 0.5 and 0.25 level); all three serve a crowd as soon as copying everywhere does."""


@dataclass(frozen=True, slots=True)
class PricedTTFT:
    """`cost(i) = wait(i) + o(i) + u(i)/r(i) + u(i)/R · (ρ + λ·W)/(1-ρ)`; the lowest wins.

    u: uncached tokens of this prompt on instance i, and what reading back those on a slower tier
    costs; r, o: its prefill rate, and what a prefill takes there beside its tokens; R: the pool's
    mean rate; ρ: the pool's prefill utilisation; λ: arrivals a second and instance; W: the wait at
    the instance where it is least.

    The last term is the delay that this prefill inflicts on others, so locality counts more the
    busier the pool is, with no knob to turn. One second of work delays those who come later by
    ρ/(1-ρ) seconds in the long run (M/G/1). And where everybody waits, even at the best instance,
    the λ·W that come meanwhile find the work of now before them, each a second more, and their own
    work delays others in turn. It is charged on token counts at the pool's rate: a rate that is
    wrong for one instance then cannot drive everything away from it.

    Where the prompt's longest cached prefix has holders that are waited for, all others cost less
    by half the seconds that its turns have waited of late: one more holder serves those who come
    later, too (`Crowds`).

    Where it is known when turns come home to an instance, the seconds that this prefill would have
    them wait are added to its price (`Returns`).

    Equal costs: fewest requests in flight, then round the instances with `turn.tiebreak`, so that
    an idle pool is filled evenly. A prompt whose tokens are unknown is placed by wait alone.
    """

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """Every eligible instance, cheapest first. O(n log n) in their number."""
        rho = pool.utilisation
        least_wait = min(view.waiting_tokens / view.prefill_rate for view in pool.instances)
        delayed = (rho + pool.arrival_rate * least_wait) / (1.0 - rho)
        price_rate = delayed / pool.prefill_rate
        count = len(pool.instances)
        most_cached = max(view.cached_tokens for view in pool.instances)

        def score(view: InstanceView) -> Score:
            uncached = 0.0 if turn.tokens is None else max(turn.tokens - view.cached_tokens, 0)
            uncached += view.reload_tokens
            wait_s = view.waiting_tokens / view.prefill_rate
            prefill_s = uncached / view.prefill_rate + view.overhead_s
            price_s = uncached * price_rate
            if view.cached_tokens < most_cached:
                price_s -= COPY_SHARE * pool.waited_s
            if view.due:
                price_s += delay_s(view.due, wait_s, wait_s + prefill_s)
            return Score(
                instance=view.instance,
                endpoint=view.endpoint,
                cached_tokens=view.cached_tokens,
                wait_s=wait_s,
                prefill_s=prefill_s,
                price_s=price_s,
                wait_weight=turn.wait_weight,
            )

        ranked = sorted(
            (
                (score(view), view.in_flight, (position - turn.tiebreak) % count)
                for position, view in enumerate(pool.instances)
            ),
            key=lambda entry: (entry[0].cost_s, entry[1], entry[2]),
        )
        return Ranking(tuple(entry[0] for entry in ranked))
