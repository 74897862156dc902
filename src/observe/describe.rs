//! Descriptions of the metrics.

/// Describes each metric to the recorder, when an engine is built.
pub(crate) fn describe() {
    #[cfg(feature = "metrics")]
    {
        use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
        describe_counter!("nevertwice_begins_total", Unit::Count, "Begins by their answer");
        describe_histogram!("nevertwice_begin_seconds", Unit::Seconds, "Time from a begin to its answer");
        describe_counter!(
            "nevertwice_takeovers_total",
            Unit::Count,
            "Grants that took over an expired lease"
        );
        describe_counter!("nevertwice_commands_total", Unit::Count, "Commands of leases by their answer");
        describe_histogram!("nevertwice_finish_seconds", Unit::Seconds, "Time from a finish to its answer");
        describe_counter!("nevertwice_leases_abandoned_total", Unit::Count, "Leases dropped unfinished");
        describe_counter!("nevertwice_renewals_overdue_total", Unit::Count, "Renewals that came late");
        describe_counter!(
            "nevertwice_leases_lost_total",
            Unit::Count,
            "Holders that learned of the loss of their lease"
        );
        describe_counter!(
            "nevertwice_restored_total",
            Unit::Count,
            "Outcomes recorded anew because their record was gone"
        );
        describe_counter!("nevertwice_store_retries_total", Unit::Count, "Store calls that were repeated");
        describe_counter!("nevertwice_timeouts_total", Unit::Count, "Calls that timed out");
        describe_gauge!("nevertwice_waiters", Unit::Count, "Callers waiting for a duplicate in flight");
        describe_counter!("nevertwice_waits_total", Unit::Count, "Waits by outcome");
        describe_histogram!("nevertwice_wait_seconds", Unit::Seconds, "Duration of waits");
        describe_counter!("nevertwice_runs_total", Unit::Count, "Runs by outcome");
        describe_counter!("nevertwice_purged_total", Unit::Count, "Records removed by purges");
        describe_counter!(
            "nevertwice_responses_dropped_total",
            Unit::Count,
            "Responses dropped before their records"
        );
        describe_counter!("nevertwice_purge_failures_total", Unit::Count, "Purges that ended with an error");
        describe_counter!(
            "nevertwice_unsettled_expired_total",
            Unit::Count,
            "Evidence that expired unsettled"
        );
        describe_gauge!("nevertwice_unresolved", Unit::Count, "Operations whose effect may have happened");
        describe_counter!(
            "nevertwice_http_requests_total",
            Unit::Count,
            "Requests to the HTTP layer by their answer"
        );
        describe_counter!(
            "nevertwice_outbox_deliveries_total",
            Unit::Count,
            "Attempts to deliver an event of the outbox by outcome"
        );
        describe_counter!("nevertwice_outbox_errors_total", Unit::Count, "Failures of the outbox's database");
        describe_gauge!("nevertwice_outbox_depth", Unit::Count, "Events to be delivered");
        describe_gauge!("nevertwice_outbox_lag_seconds", Unit::Seconds, "Age of the oldest pending event");
        describe_gauge!("nevertwice_outbox_dead_letters", Unit::Count, "Events put aside");
        describe_counter!(
            "nevertwice_redis_redirects_total",
            Unit::Count,
            "Items that a node of a Redis cluster sent elsewhere"
        );
        describe_counter!(
            "nevertwice_redis_refreshes_total",
            Unit::Count,
            "Times that Redis nodes or sentinels were asked for the primaries"
        );
        describe_counter!(
            "nevertwice_redis_failovers_total",
            Unit::Count,
            "Redis primaries that others replaced"
        );
        describe_counter!(
            "nevertwice_redis_too_few_replicas_total",
            Unit::Count,
            "Pipelines that too few Redis replicas confirmed"
        );
        describe_counter!(
            "nevertwice_operator_actions_total",
            Unit::Count,
            "Resolutions and removals by operators"
        );
    }
}
