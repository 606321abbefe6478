"""Every metric of Homing: name, unit, labels, help. docs/metrics.md is generated from here."""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_STAGE_BUCKETS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5)
_HOLD_BUCKETS = (5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1.0, 5.0, 30.0)
_LAG_BUCKETS = (5e-3, 1e-2, 1.5e-2, 2e-2, 3e-2, 5e-2, 7.5e-2, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0)
_TOKEN_BUCKETS = (0, 256, 1024, 4096, 16384, 65536, 262144)


class Metrics:
    """The process's metrics, in a registry of their own so that tests can hold several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.picks = Counter(
            "homing_picks",
            "Requests routed, by pool, how they were placed (home, moved, new, load) and why by "
            "load (reason).",
            ["pool", "why", "reason"],
            registry=registry,
        )
        self.refusals = Counter(
            "homing_refusals", "Requests that Homing refused.", ["code"], registry=registry
        )
        self.replies = Counter(
            "homing_replies",
            "Requests that Homing answered in an engine's stead (models: the list of models).",
            ["what"],
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "homing_prompt_tokens", "Tokens of routed prompts.", ["pool"], registry=registry
        )
        self.predicted_cached_tokens = Counter(
            "homing_predicted_cached_tokens",
            "Tokens of routed prompts that the picked instance was expected to hold.",
            ["pool"],
            registry=registry,
        )
        self.prompt_size = Histogram(
            "homing_prompt_size_tokens",
            "Tokens of a routed prompt.",
            ["pool"],
            buckets=_TOKEN_BUCKETS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "homing_stage_seconds",
            "Time of one stage of a pick.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        self.answers = Counter(
            "homing_answers",
            "Response headers seen, by status class (2xx … 5xx, none).",
            ["pool", "status"],
            registry=registry,
        )
        self.model_rewrites = Counter(
            "homing_model_rewrites",
            "Bodies whose model name was replaced (request, answer), and answers that came encoded "
            "and were left as they are (answer_encoded).",
            ["what"],
            registry=registry,
        )
        self.rerouted = Counter(
            "homing_rerouted",
            "Requests that another endpoint served than the one picked.",
            ["pool"],
            registry=registry,
        )
        self.streams = Gauge(
            "homing_open_streams",
            "ext_proc streams open now, by how far they are.",
            ["state"],
            registry=registry,
        )
        self.held_bytes = Gauge(
            "homing_held_bytes",
            "Bytes of request bodies that are kept from the engines now.",
            registry=registry,
        )
        self.hints = Counter(
            "homing_hints",
            "What was told of when a conversation comes back: told, learnt, too vague to be used, "
            "or nonsense (told, learnt, vague, bad).",
            ["pool", "source"],
            registry=registry,
        )
        self.overrides = Counter(
            "homing_overrides",
            "Picks with an operator's header: applied, unmet (not among what may be picked), bad "
            "(in part not understood).",
            ["pool", "outcome"],
            registry=registry,
        )
        self.prefetches = Counter(
            "homing_prefetches",
            "Prefixes that were computed at a new instance beforehand: done, failed.",
            ["pool", "outcome"],
            registry=registry,
        )
        self.waiting = Gauge(
            "homing_waiting_requests",
            "Requests that wait here for their turn because every instance is busy.",
            ["pool"],
            registry=registry,
        )
        self.hold_seconds = Histogram(
            "homing_hold_seconds",
            "Time that a request waited for Homing, from its first part that was held to its "
            "release; where the body is streamed its arrival is in it.",
            buckets=_HOLD_BUCKETS,
            registry=registry,
        )
        self.released = Counter(
            "homing_released",
            "Requests let go without a pick while their body came in (hold_timeout, "
            "max_held_bytes, drain).",
            ["reason"],
            registry=registry,
        )
        self.streams_cut = Counter(
            "homing_streams_cut",
            "Streams that Homing ended before the proxy did.",
            ["reason"],
            registry=registry,
        )
        self.errors = Counter(
            "homing_internal_errors",
            "Faults inside Homing; the request was routed by load all the same.",
            ["where"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "homing_in_flight", "Requests routed and not ended.", ["pool"], registry=registry
        )
        self.in_flight_elsewhere = Gauge(
            "homing_in_flight_elsewhere",
            "Requests that the other replicas say they have in flight.",
            ["pool"],
            registry=registry,
        )
        self.index_blocks = Gauge(
            "homing_index_blocks",
            "Blocks that the index believes held, over all instances.",
            ["pool"],
            registry=registry,
        )
        self.index_digest = Gauge(
            "homing_index_digest",
            "The upper 52 bits of the index's digest at homing_index_digest_revision: equal at an "
            "equal revision on all replicas of one version.",
            ["pool"],
            registry=registry,
        )
        self.index_digest_revision = Gauge(
            "homing_index_digest_revision",
            "Place in the log of the last fact that homing_index_digest covers.",
            ["pool"],
            registry=registry,
        )
        self.index_evicted = Gauge(
            "homing_index_evicted_blocks",
            "Blocks that the index forgot since it was opened, by whose bound it was (capacity, "
            "tenant, pool).",
            ["pool", "reason"],
            registry=registry,
        )
        self.index_refused = Gauge(
            "homing_index_refused_facts",
            "Facts that the index could not file since it was opened, by reason.",
            ["pool", "reason"],
            registry=registry,
        )
        self.event_streams = Gauge(
            "homing_event_streams",
            "Instances whose KV-cache events are followed, by how: live (all is known that they "
            "hold), partial (only what came since), catching_up, down.",
            ["pool", "state"],
            registry=registry,
        )
        self.event_blocks = Counter(
            "homing_event_blocks",
            "Blocks that engines reported (stored, removed).",
            ["pool", "what"],
            registry=registry,
        )
        self.event_blocks_skipped = Counter(
            "homing_event_blocks_skipped",
            "Reported blocks, and whole events (unknown_tag, malformed, not_a_prefix, medium), "
            "left out, by reason (docs/events.md).",
            ["pool", "reason"],
            registry=registry,
        )
        self.event_troubles = Counter(
            "homing_event_troubles",
            "What went wrong with streams of events (docs/events.md).",
            ["pool", "what"],
            registry=registry,
        )
        self.expired = Counter(
            "homing_expired_expectations",
            "Requests of which an instance was expected to hold blocks that its events did not "
            "confirm in time.",
            ["pool"],
            registry=registry,
        )
        self.report_modes = Counter(
            "homing_report_modes_removed",
            "Bodies that were forwarded without the kv_cache_report_mode that they had.",
            ["pool"],
            registry=registry,
        )
        self.instances = Gauge(
            "homing_instances",
            "Instances of a pool, by what discovery says of them (starting, ready, draining) and "
            "whether they answer.",
            ["pool", "state", "answers"],
            registry=registry,
        )
        self.load_unknown = Gauge(
            "homing_instances_load_unknown",
            "Instances whose load is not known: no metrics, or none for too long.",
            ["pool"],
            registry=registry,
        )
        self.discovery_errors = Counter(
            "homing_discovery_errors",
            "Times that the instances of a pool could not be learnt; they stayed as they were.",
            ["pool", "kind"],
            registry=registry,
        )
        self.scrapes = Counter(
            "homing_scrapes",
            "Looks at the metrics of instances, by what came of them (read, nothing: an answer "
            "that is no engine's metrics, refused, silent).",
            ["pool", "result"],
            registry=registry,
        )
        self.reloads = Counter(
            "homing_reloads",
            "Changes of the configuration, the certificate or a model on a hub, by what came of "
            "them (taken, refused: the old one stays).",
            ["what", "result"],
            registry=registry,
        )
        self.log_puts = Counter(
            "homing_log_puts", "Records written to etcd.", ["pool"], registry=registry
        )
        self.log_put_bytes = Counter(
            "homing_log_put_bytes",
            "Bytes of the records written to etcd, keys included.",
            ["pool"],
            registry=registry,
        )
        self.log_lag_seconds = Histogram(
            "homing_log_lag_seconds",
            "Time from a fact's append to its return from the log, of each record's first fact.",
            ["pool"],
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        self.log_behind_seconds = Gauge(
            "homing_log_behind_seconds",
            "Age of the oldest own fact that has not come back from the log; 0 where all have.",
            ["pool"],
            registry=registry,
        )
        self.log_facts = Counter(
            "homing_log_facts",
            "Facts given to the index from the log.",
            ["pool"],
            registry=registry,
        )
        self.log_dropped_facts = Gauge(
            "homing_log_dropped_facts",
            "Own facts left out since the start: the backlog was full (log.backlog_bytes).",
            ["pool"],
            registry=registry,
        )
        self.log_backlog_bytes = Gauge(
            "homing_log_backlog_bytes",
            "Bytes of own facts that wait to be written.",
            ["pool"],
            registry=registry,
        )
        self.log_bytes = Gauge(
            "homing_log_bytes",
            "Bytes of log in etcd after the snapshot.",
            ["pool"],
            registry=registry,
        )
        self.log_rejected = Gauge(
            "homing_log_rejected_records",
            "Records left out since the log was read, the same on all replicas, by reason "
            "(checksum, malformed, place, repeated, rewritten).",
            ["pool", "reason"],
            registry=registry,
        )
        self.log_skipped = Gauge(
            "homing_log_skipped_facts",
            "Facts of good records left out since the log was read: of a later version, or out of "
            "bounds.",
            ["pool"],
            registry=registry,
        )
        self.log_revision = Gauge(
            "homing_log_revision",
            "Place in the log of the last record that was read.",
            ["pool"],
            registry=registry,
        )
        self.log_failures = Counter(
            "homing_log_failures",
            "Calls to etcd that failed, by reason (unreachable, denied, no_space, too_large, "
            "compacted, other).",
            ["pool", "reason"],
            registry=registry,
        )
        self.log_reloads = Counter(
            "homing_log_reloads",
            "Times that the log was read from the start again, by reason.",
            ["pool", "reason"],
            registry=registry,
        )
        self.log_snapshots = Counter(
            "homing_log_snapshots",
            "Snapshots by result: written, failed (to be), loaded (at the start), refused (then).",
            ["pool", "result"],
            registry=registry,
        )
        self.log_warm = Gauge(
            "homing_log_warm",
            "1 once the index has all that was in the log when it was opened.",
            ["pool"],
            registry=registry,
        )
        self.log_leader = Gauge(
            "homing_log_leader",
            "1 where this replica writes the pool's snapshots.",
            ["pool"],
            registry=registry,
        )
        self.log_replicas = Gauge(
            "homing_log_replicas",
            "Live replicas of the pool, this one included.",
            ["pool"],
            registry=registry,
        )
        self.certificate_expiry = Gauge(
            "homing_certificate_expiry_timestamp_seconds",
            "Unix time at which the certificate of new connections ends; 0 without TLS.",
            registry=registry,
        )
        self.fold_version = Gauge(
            "homing_fold_version",
            "Version of what facts mean: digests are comparable between equal ones.",
            registry=registry,
        )
        self.ready = Gauge("homing_ready", "1 once every model is loaded.", registry=registry)
        # Looking a label up costs 3 µs, five times an increment: a pick's are kept.
        self.stage = cache(self.stage_seconds.labels)
        self.pick = cache(self.picks.labels)
        self.scrape = cache(self.scrapes.labels)
        self.prompt = cache(
            lambda pool: (
                self.prompt_tokens.labels(pool),
                self.predicted_cached_tokens.labels(pool),
                self.prompt_size.labels(pool),
            )
        )
