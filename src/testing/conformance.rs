//! The macro that mounts the [`checks`](super::checks) on a store.

/// Mounts every conformance check on a store, each as its own named test in a module.
///
/// The setup is a future that creates an empty store and a guard, which is dropped after the check
/// (a temporary folder, a server, or `()`). It is evaluated anew for each check. The third argument
/// names the function that runs futures, if the store needs more than
/// [`block_on`](crate::testing::block_on) (Redis: tokio).
///
/// ```
/// # #[cfg(feature = "memory")]
/// nevertwice::conformance!(memory, async { (nevertwice::MemoryStore::new(), ()) });
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! conformance {
    ($name:ident, $setup:expr) => {
        $crate::conformance! { @all $name, $setup, $crate::testing::block_on,
            s1_threads_race_and_one_wins // on threads without a runtime
        }
    };
    ($name:ident, $setup:expr, $block_on:path) => {
        $crate::conformance! { @all $name, $setup, $block_on, }
    };
    (@all $name:ident, $setup:expr, $block_on:path, $($more:ident)*) => {
        $crate::conformance! { @tests $name, $setup, $block_on,
            $($more)*
            an_absent_key_loads_as_none
            s1_one_of_many_concurrent_swaps_wins
            a_lost_race_shows_the_present_record
            removing_what_is_absent_is_done
            s5_stamps_increase_over_writes_and_removals
            s5_every_write_raises_the_stamp
            records_come_back_byte_for_byte
            s7_other_records_are_untouched
            s13_nothing_is_removed_before_its_deadline
            s13_evidence_outlasts_the_retention
            s13_time_does_not_go_back
            a_fresh_key_is_granted
            s1_of_many_concurrent_begins_one_is_granted
            s1_of_many_takeovers_one_is_granted
            s2_an_outcome_is_immutable
            s3_stale_token_changes_nothing
            s3_a_forged_token_changes_nothing
            s3_a_token_of_another_store_is_refused
            s3_a_grant_that_was_rolled_back_records_nothing
            s3_a_released_lease_records_nothing
            s13_nothing_is_evicted
            swaps_of_a_batch_see_each_other
            swaps_of_a_batch_are_answered_as_alone
            l4_a_change_is_never_missed
            l4_waiters_get_the_outcome
            l4_one_waiter_goes_on_after_a_failure
            l3_a_holder_that_was_overtaken_knows
            run_executes_once
            s11_batches_are_whole_or_can_be_repeated
            a_listing_shows_every_record_once
            s4_another_fingerprint_gets_nothing_in_any_state
            s5_fences_increase
            s6_a_repeated_begin_gets_the_same_grant_and_no_more_time
            s6_a_repeated_finish_is_ok_and_changes_nothing
            s7_nothing_is_readable_under_another_scope
            s8_a_marked_effect_is_not_rerun
            s8_an_assumed_effect_is_marked_with_its_grant
            s8_an_owner_that_wrote_is_answered_as_any_caller
            s8_a_grant_is_given_anew_only_within_its_call
            s10_errors_are_never_grants
            l1_a_call_ends_by_its_deadline
            s11_a_dropped_call_leaves_nothing_half_done
            l2_a_crashed_key_is_granted_after_its_lease
            l6_extreme_durations_leave_every_state_an_exit
            late_work_is_recorded
            a_failure_is_retried_as_it_says
            an_operator_settles_what_is_unresolved
            what_is_unresolved_is_found_and_counted
            a_released_or_forgotten_key_is_absent
            a_lease_is_handed_over_by_its_token
            an_oversized_response_leaves_a_marker
            an_inspection_tells_the_state
            s15_random_histories_are_answered_as_by_the_model
            s6_faults_change_no_answer
        }
    };
    (@tests $name:ident, $setup:expr, $block_on:path, $($check:ident)*) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[test]
                fn $check() {
                    $block_on(async {
                        let (store, guard) = $setup.await;
                        $crate::testing::checks::$check(::std::sync::Arc::new(store)).await;
                        drop(guard);
                    });
                }
            )*
        }
    };
}
