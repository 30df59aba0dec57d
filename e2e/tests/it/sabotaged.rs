//! Every gate against its known-bad variant: the assertion that the gate names must break.

use cxmpute_e2e::gates::*;
use cxmpute_e2e::ground::alone;
use cxmpute_e2e::paths::Path;
use cxmpute_e2e::services::Service;
use cxmpute_e2e::settings::{Setting, Store};
use cxmpute_e2e::ways::Way;

macro_rules! caught {
    ($name:ident, $gate:ident, $variant:literal) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let _alone = alone().unwrap();
            $gate::gate(Setting::bad($variant)).await.unwrap().must_break($gate::CAUGHT_BY, $variant);
        }
    };
}

caught!(l1_catches_check_then_debit, overspend, "check_then_debit");
caught!(l1_catches_an_allowance_that_is_kept, allowances, "keep_allowances");
caught!(l4_catches_metering_at_the_end, aborted, "meter_at_stream_end");
caught!(faults_catch_a_bill_for_what_broke_off, faults, "bill_undelivered");
caught!(gr7_catches_answers_nobody_looks_at, lies, "unchecked_shape");
caught!(gr7_catches_speech_nobody_listens_to, lies_services, "unchecked_shape");
caught!(gr31_catches_the_first_price, fallback, "keep_first_price");
caught!(l6_catches_two_posts, retries, "bill_every_attempt");
caught!(c1_catches_done_before_commit, crash, "done_before_commit");
caught!(g1_catches_missing_timers, slow_clients, "no_accept_timer");
caught!(g5_catches_missing_ejection, ejection, "no_ejection");
caught!(g7_catches_an_immediate_exit, drain, "immediate_exit");
caught!(g9_catches_trust_in_everybody, addresses, "trust_all");
caught!(gr16_catches_collected_events, lockstep, "collected_events");
caught!(p6_catches_routing_by_probes, probes, "probe_only_routing");
caught!(n3_catches_an_upsert, enrolment, "unconditional_upsert");
caught!(p1_catches_a_byte_pass_through, rogue_streams, "byte_pass_through");
caught!(p2_catches_proxied_headers, rogue_answers, "proxy_headers");
caught!(p5_catches_a_missing_owner_check, epochs, "no_owner_check");
caught!(u1_catches_untyped_parsing, bodies, "untyped_parsing");
caught!(u2_catches_a_passed_through_body, values, "extra_body");
caught!(u3_catches_an_undocumented_status, property, "undocumented_status");
caught!(w3_catches_a_forgotten_route, surface, "forgotten_route");
caught!(x1_catches_a_body_in_the_log, leaks, "body_in_log");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x1_catches_a_body_in_a_trace() {
    let _alone = alone().unwrap();
    let setting = Setting::bad("body_in_trace");
    leaks::gate(setting).await.unwrap().must_break(leaks::CAUGHT_IN_TRACES_BY, "body_in_trace");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_catches_check_then_debit_on_postgres() {
    let _alone = alone().unwrap();
    let setting = Setting::bad("check_then_debit").on(Store::Postgres);
    overspend::gate(setting).await.unwrap().must_break(overspend::CAUGHT_BY, "check_then_debit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_catches_missing_limits_of_frames_and_of_shut_windows() {
    let _alone = alone().unwrap();
    let verdict = floods::gate(Setting::bad("no_frame_limits")).await.unwrap();
    verdict.must_break(floods::CAUGHT_BY, "no_frame_limits");
    verdict.must_break(floods::SHUT_CAUGHT_BY, "no_frame_limits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gr7_catches_forgiveness() {
    let _alone = alone().unwrap();
    let verdict = lies::gate(Setting::bad("no_ejection")).await.unwrap();
    verdict.must_break(lies::COUNTED, "no_ejection");
}

/// Every kind of answer by itself: metering at the end of a stream bills nobody who leaves, billing what was computed bills
/// whole answers that nobody got. Vectors are paid only when delivered, so only the second is wrong on them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_catches_wrong_bills_on_every_path() {
    let _alone = alone().unwrap();
    let at_the_end = aborted_paths::gate(Setting::bad("meter_at_stream_end")).await.unwrap();
    let undelivered = aborted_paths::gate(Setting::bad("bill_undelivered")).await.unwrap();
    for way in Way::ALL {
        if way.path != Path::Embeddings {
            at_the_end.must_break(way.rule, "meter_at_stream_end");
        }
        if !way.streamed() {
            undelivered.must_break(way.rule, "bill_undelivered");
        }
    }
}

/// Speech and recordings are paid once a node accepted, so on them only a bill before that is wrong; pictures and pages are
/// paid only when delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_catches_wrong_bills_of_every_service() {
    let _alone = alone().unwrap();
    let undelivered = aborted_services::gate(Setting::bad("bill_undelivered")).await.unwrap();
    for service in Service::ALL {
        undelivered.must_break(service.rule(), "bill_undelivered");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gr7_catches_forgiveness_of_services() {
    let _alone = alone().unwrap();
    let verdict = lies_services::gate(Setting::bad("no_ejection")).await.unwrap();
    verdict.must_break(lies_services::COUNTED, "no_ejection");
}
