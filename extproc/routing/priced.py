"""The default policy: price what a pick costs everybody."""

from dataclasses import dataclass

from extproc.routing.views import InstanceView, PoolView, Ranking, Score, Turn


@dataclass(frozen=True, slots=True)
class PricedTTFT:
    """`cost(i) = wait(i) + u(i)/r(i) + u(i)/R · ρ/(1-ρ)`; the lowest wins.

    u: uncached tokens of this prompt on instance i, and what reading back those on a slower tier
    costs; r: its prefill rate; R: the pool's mean rate; ρ: the pool's prefill utilisation. The last
    term is the delay that this prefill inflicts on later arrivals (M/G/1: one second of work delays
    others by ρ/(1-ρ) seconds), so locality counts more the busier the pool is, with no knob to
    turn. It is charged on token counts at the pool's rate: a rate that is wrong for one instance
    then cannot drive everything away from it.

    Equal costs: fewest requests in flight, then round the instances with `turn.tiebreak`, so that
    an idle pool is filled evenly. A prompt whose tokens are unknown is placed by wait alone.
    """

    def rank(self, turn: Turn, pool: PoolView) -> Ranking:
        """Every eligible instance, cheapest first. O(n log n) in their number."""
        price_rate = pool.utilisation / (1.0 - pool.utilisation) / pool.prefill_rate
        count = len(pool.instances)

        def score(view: InstanceView) -> Score:
            uncached = 0.0 if turn.tokens is None else max(turn.tokens - view.cached_tokens, 0)
            uncached += view.reload_tokens
            return Score(
                instance=view.instance,
                endpoint=view.endpoint,
                cached_tokens=view.cached_tokens,
                wait_s=view.waiting_tokens / view.prefill_rate,
                prefill_s=uncached / view.prefill_rate,
                price_s=uncached * price_rate,
            )

        ranked = sorted(
            (
                (score(view), view.in_flight, (position - turn.tiebreak) % count)
                for position, view in enumerate(pool.instances)
            ),
            key=lambda entry: (entry[0].cost_s, entry[1], entry[2]),
        )
        return Ranking(tuple(entry[0] for entry in ranked))
