//! One suite over all stores, embedded, on a real Redis and on a real Redis Cluster, so that they can't drift; and what only
//! one of them can do wrong.
#![cfg(all(feature = "embedded", feature = "redis"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "store_suite/cluster.rs"]
mod cluster_only;
#[path = "store_suite/cursors.rs"]
mod cursors;
#[path = "store_suite/embedded.rs"]
mod embedded_only;
#[path = "store_suite/fixture.rs"]
mod fixture;
#[path = "store_suite/groups.rs"]
mod groups;
#[path = "store_suite/log.rs"]
mod log;
#[path = "store_suite/moving.rs"]
mod moving_only;
#[path = "store_suite/pushes.rs"]
mod pushes;
#[path = "support/redis_cluster.rs"]
mod redis_cluster;
#[path = "store_suite/redis.rs"]
mod redis_only;
#[path = "support/redis.rs"]
mod redis_server;
#[path = "store_suite/replicated.rs"]
mod replicated;
#[path = "store_suite/sessions.rs"]
mod sessions;
#[path = "store_suite/trim.rs"]
mod trim;
#[path = "store_suite/users.rs"]
mod users;
#[path = "store_suite/wills.rs"]
mod wills;

macro_rules! on_all {
    ($($file:ident: $($test:ident),+;)+) => {
        mod on_embedded {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                crate::$file::$test(crate::fixture::Fixture::embedded().await).await;
            })+)+
        }
        mod on_redis {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                crate::$file::$test(crate::fixture::Fixture::redis().await).await;
            })+)+
        }
        mod on_cluster {
            /// One cluster for all of them, one after the other: forming one takes seconds.
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn everything_holds() {
                let cluster = crate::redis_cluster::RedisCluster::start(3, 0, &[]);
                $($({
                    println!("{}::{}", stringify!($file), stringify!($test));
                    let fixture = crate::fixture::Fixture::cluster(cluster.clone()).await;
                    crate::$file::$test(fixture).await;
                    cluster.empty();
                })+)+
            }
        }
    };
}

on_all! {
    log:
        ids_are_dense_and_begin_at_one_in_every_term,
        an_old_holder_writes_nothing,
        what_is_appended_is_what_is_read,
        pages_are_bounded_in_entries_and_bytes,
        read_back_tells_what_producers_stored,
        appends_of_many_partitions_do_not_mix,
        everything_survives_a_restart;
    cursors:
        a_cursor_is_created_once_and_not_resurrected,
        starts_are_latest_earliest_and_a_time,
        a_time_is_found_across_terms,
        open_entries_are_dropped_when_passed,
        the_fan_out_cursor_comes_and_goes,
        names_of_groups_are_any_text;
    trim:
        every_cursor_holds_entries_back,
        the_newest_entries_are_kept,
        a_defined_group_without_a_cursor_means_no_trim,
        totals_survive_a_log_that_is_empty;
    groups:
        a_dead_letter_is_kept_once_until_it_is_removed,
        dead_letters_are_bounded_and_the_oldest_are_dropped,
        a_group_that_is_sought_begins_anew_there,
        a_full_log_goes_as_far_as_blocking_groups_allow,
        a_group_that_is_detached_holds_nothing_until_it_is_consumed,
        what_is_too_old_goes_whoever_needs_it,
        a_log_without_groups_keeps_what_fits;
    sessions:
        a_session_is_created_resumed_and_wiped,
        mail_is_appended_once_and_only_to_its_incarnation,
        nothing_of_a_wiped_session_is_repeated_into_the_next,
        what_was_handed_out_comes_again_with_its_identifier,
        the_newest_mail_is_dropped_at_the_limits,
        mail_that_is_too_old_is_dropped_when_its_turn_comes,
        other_connections_and_older_terms_are_refused,
        a_session_expires_with_its_mail,
        the_state_of_a_session_is_shown,
        sessions_survive_a_restart,
        the_table_of_filters_is_followed_by_its_changes,
        a_reader_that_is_too_far_behind_loads_the_table;
    pushes:
        pushes_wait_for_a_client_without_a_session,
        pushes_outlive_sessions_and_mail_does_not,
        pushes_are_dropped_when_their_time_is_over,
        a_full_mailbox_refuses_pushes_until_old_ones_are_over,
        a_push_with_a_known_key_is_not_stored_again,
        a_key_of_a_push_that_does_not_wait_keeps_its_outcome;
    wills:
        a_will_fires_once_and_is_an_entry_of_the_log,
        only_the_will_of_the_named_epoch_is_touched,
        two_homes_that_notice_at_once_fire_a_will_once,
        wills_survive_a_restart_and_go_with_their_tenant,
        many_wills_are_all_found;
    users:
        users_are_created_replaced_and_deleted,
        tenants_share_names_and_nothing_else,
        a_deleted_tenant_is_gone_and_its_old_homes_are_fenced;
}
