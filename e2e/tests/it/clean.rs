//! Every gate against the gateway as it ships. A test here holds the whole machine: gates measure deadlines.

use cxmpute_e2e::gates::*;
use cxmpute_e2e::ground::alone;
use cxmpute_e2e::settings::{Setting, Store, postgres_url};

macro_rules! gate {
    ($name:ident, $gate:path) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let _alone = alone().unwrap();
            $gate(Setting::clean()).await.unwrap().must_hold();
        }
    };
}

gate!(l1_the_balance_is_never_overspent, overspend::gate);
gate!(l4_a_client_that_leaves_pays_for_what_it_got, aborted::gate);
gate!(l4_holds_on_every_path, aborted_paths::gate);
gate!(l4_holds_on_every_service, aborted_services::gate);
gate!(l6_one_attempt_is_billed, retries::gate);
gate!(c1_a_killed_gateway_loses_and_invents_nothing, crash::gate);
gate!(g1_slow_clients_are_freed, slow_clients::gate);
gate!(g2_floods_of_frames_end_in_goaway, floods::gate);
gate!(g5_a_faulty_node_is_ejected, ejection::gate);
gate!(faulty_networks_hurt_nobody_else, faults::gate);
gate!(g7_a_stopped_gateway_ends_its_streams_with_words, drain::gate);
gate!(g9_forged_addresses_change_nothing, addresses::gate);
gate!(gr16_nothing_collects_events, lockstep::gate);
gate!(p6_work_decides_not_probes, probes::gate);
gate!(n3_nobody_enrols_over_somebody_else, enrolment::gate);
gate!(p1_rogue_streams_are_stopped, rogue_streams::gate);
gate!(gr7_answers_that_break_their_shape_are_refused, lies::gate);
gate!(gr7_answers_that_are_none_are_refused, lies_services::gate);
gate!(gr31_the_next_model_answers_at_its_own_price, fallback::gate);
gate!(p2_only_our_schema_leaves, rogue_answers::gate);
gate!(p5_foreign_and_late_answers_are_dropped, epochs::gate);
gate!(u1_what_is_no_request_is_refused, bodies::gate);
gate!(u2_values_out_of_bounds_name_their_field, values::gate);
gate!(u3_every_answer_is_documented, property::gate);
gate!(w3_only_documented_routes_are_served, surface::gate);
gate!(x1_nothing_secret_leaks, leaks::gate);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_rogue_streams_cost_bounded_memory() {
    let _alone = alone().unwrap();
    memory::gate(Setting::clean(), None).await.unwrap().must_hold();
}

gate!(l1_money_taken_beforehand_is_there_for_everybody, allowances::gate);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_the_balance_is_never_overspent_on_postgres() {
    let _alone = alone().unwrap();
    assert!(
        postgres_url().is_some(),
        "CXMPUTE_TEST_POSTGRES_URL is not set: run scripts/test, which starts a PostgreSQL"
    );
    overspend::gate(Setting::clean().on(Store::Postgres)).await.unwrap().must_hold();
}

/// The known-bad variant of the memory gate is a setting, so it needs no sabotaged program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_catches_a_bound_on_events_that_is_none() {
    let _alone = alone().unwrap();
    let verdict = memory::gate(Setting::clean(), Some(4 << 20)).await.unwrap();
    verdict.must_break(memory::CAUGHT_BY, "events of 4 MiB");
}
