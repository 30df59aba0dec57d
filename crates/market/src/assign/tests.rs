use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::catalogue::Catalogue;

const GIB: u64 = 1 << 30;
const NOW: Timestamp = Timestamp(1_767_225_600_000);

fn later(minutes: i64) -> Timestamp {
    Timestamp(NOW.0 + minutes * 60_000)
}

/// A model with pinned files that runs on the processor in so many GiB.
fn need(name: &str, memory: u64, disk: u64) -> Need {
    Need {
        service: name.parse().unwrap(),
        names: vec![name.split_once(':').unwrap().1.to_owned()],
        engines: vec![Engine::Builtin],
        delivery: Delivery::Pinned,
        vram: Bytes(0),
        memory: Bytes(memory * GIB),
        cpu_memory: Some(Bytes(memory * GIB)),
        disk: Bytes(disk * GIB),
        files: Vec::new(),
        price: MicroCredits(1_000),
        target: 8,
    }
}

/// The same on accelerators only.
fn large(name: &str, vram: u64) -> Need {
    Need { vram: Bytes(vram * GIB), memory: Bytes(0), cpu_memory: None, ..need(name, 0, 0) }
}

/// A machine with so many GiB of memory and disk to give away.
fn machine(name: &str, memory: u64, disk: u64) -> Offer {
    Offer {
        provision: ProvisionId::from_tail(name),
        owner: UserId::from_tail(name),
        region: None,
        gpus: Vec::new(),
        memory: Bytes(memory * GIB + MEMORY_RESERVE.0),
        disk_free: Bytes(disk * GIB + DISK_RESERVE.0),
        engines: Vec::new(),
        allow: Vec::new(),
        deny: Vec::new(),
        least_prices: Vec::new(),
        held: Vec::new(),
        floors: Vec::new(),
        running: Vec::new(),
    }
}

fn with_gpus(mut offer: Offer, sizes: &[u64]) -> Offer {
    let gpu = |(index, size): (u32, &u64)| Gpu { index, memory: Bytes(size * GIB + VRAM_RESERVE.0) };
    offer.gpus = (0..).zip(sizes).map(gpu).collect();
    offer
}

fn alone(needs: &[Need], offer: &Offer) -> NodePlan {
    plan(needs, std::slice::from_ref(offer), &HashMap::new(), false, NOW).remove(0)
}

fn names(plan: &NodePlan) -> Vec<&str> {
    plan.services.iter().map(|planned| planned.service.as_str()).collect()
}

/// What a service adds to the disk of a machine that never had it: nothing where an engine holds the model.
fn costs(offer: &Offer, need: &Need) -> u64 {
    let held = offer.engines.iter().any(|(engine, models)| {
        need.engines.contains(engine) && models.iter().any(|model| need.names.contains(model))
    });
    if held { 0 } else { need.disk.0 }
}

#[test]
fn a_machine_that_says_it_has_everything_breaks_no_sum() {
    let mut offer = with_gpus(machine("m", 1, 1), &[1, 1, 1]);
    offer.gpus.iter_mut().for_each(|gpu| gpu.memory = Bytes(u64::MAX));
    (offer.memory, offer.disk_free) = (Bytes(u64::MAX), Bytes(u64::MAX));
    let needs = [large("llm:a", 40), large("llm:b", 80), need("llm:c", 4, 4)];
    let plan = alone(&needs, &offer);
    assert_eq!(names(&plan), ["llm:a", "llm:b", "llm:c"]);
    // It is planned anew with what runs given back.
    let again = alone(&needs, &after(&offer, &plan, false, &needs));
    assert_eq!(names(&again), names(&plan));
}

fn wanted_file(name: &str, gib: u64) -> WantedFile {
    WantedFile { sha256: format!("{:0>64}", name.len()), name: name.to_owned(), size: Bytes(gib * GIB) }
}

/// What the plan left, as the next one finds it.
fn after(offer: &Offer, plan: &NodePlan, stored: bool, needs: &[Need]) -> Offer {
    let running = plan.services.iter().map(|planned| Running {
        service: planned.service.clone(),
        since: planned.since,
        gpus: planned.claim.gpus.clone(),
        stored,
    });
    let fresh =
        |planned: &&Planned| !offer.running.iter().any(|old| old.service == planned.service && old.stored);
    let disk =
        |planned: &Planned| costs(offer, needs.iter().find(|need| need.service == planned.service).unwrap());
    let arrived: u64 = if stored { plan.services.iter().filter(fresh).map(disk).sum() } else { 0 };
    Offer {
        running: running.collect(),
        disk_free: offer.disk_free.saturating_sub(Bytes(arrived)),
        ..offer.clone()
    }
}

fn explained(needs: &[Need], offer: &Offer, now: Timestamp) -> BTreeMap<String, Verdict> {
    let mut board = Board::new(needs, false);
    board.put(offer);
    board.explain(offer, now, true).into_iter().map(|(service, why)| (service.to_string(), why)).collect()
}

#[test]
fn the_whole_list_is_walked() {
    let needs =
        [need("llm:a", 2, 1), need("llm:big", 99, 1), need("embeddings:c", 1, 1), need("llm:d", 1, 1)];
    assert_eq!(names(&alone(&needs, &machine("m", 4, 9))), ["llm:a", "embeddings:c", "llm:d"]);
    assert!(alone(&needs, &machine("m", 0, 0)).services.is_empty(), "nothing fits an unknown machine");
}

#[test]
fn a_machine_is_given_what_its_disk_holds_already() {
    let with_file = |name: &str, file: &str| Need { files: vec![wanted_file(file, 6)], ..need(name, 2, 6) };
    let needs = [with_file("llm:a", "a.gguf"), with_file("llm:b", "bb/b.gguf")];
    // Room for one of them, and for the files of none.
    let empty = machine("m", 3, 7);
    assert_eq!(names(&alone(&needs, &empty)), ["llm:a"]);
    let by_sum =
        Held { sha256: Some(needs[1].files[0].sha256.clone()), size: Bytes(6 * GIB), ..Held::default() };
    let by_name = Held { name: Some("bb/b.gguf".to_owned()), size: Bytes(6 * GIB), ..Held::default() };
    for held in [by_sum, by_name.clone()] {
        let filled = Offer { held: vec![held], disk_free: DISK_RESERVE, ..empty.clone() };
        assert_eq!(names(&alone(&needs, &filled)), ["llm:b"], "it costs no disk, and comes first");
        let why = explained(&needs, &filled, NOW)["llm:b"].to_string();
        assert!(why.contains("its files are here"), "{why}");
    }
    // Another size is another file, and a file that two needs share is there for both.
    let other = Offer { held: vec![Held { size: Bytes(5 * GIB), ..by_name.clone() }], ..empty.clone() };
    assert_eq!(names(&alone(&needs, &other)), ["llm:a"]);
    let shared = [needs[1].clone(), Need { files: needs[1].files.clone(), ..need("llm:c", 1, 6) }];
    let both =
        Offer { held: vec![by_name.clone(), by_name.clone()], disk_free: DISK_RESERVE, ..machine("m", 9, 0) };
    assert_eq!(names(&alone(&shared, &both)), ["llm:b", "llm:c"]);
    // Half of the files is half of the room.
    let half =
        Need { files: vec![wanted_file("bb/b.gguf", 6), wanted_file("more", 2)], ..need("llm:d", 2, 8) };
    let some = Offer { held: vec![by_name], ..machine("m", 3, 2) };
    assert_eq!(names(&alone(std::slice::from_ref(&half), &some)), ["llm:d"]);
    assert!(alone(&[half], &machine("m", 3, 2)).services.is_empty());
}

#[test]
fn nothing_is_asked_of_a_machine_below_its_owner_s_least_price() {
    let priced = |name: &str, price: i64| Need { price: MicroCredits(price), ..need(name, 1, 0) };
    let needs = [priced("llm:a", 100_000), priced("llm:b", 300_000), priced("tts:c", 0)];
    let least = |list: &[(&str, i64)]| Offer {
        least_prices: list.iter().map(|(name, price)| ((*name).to_owned(), MicroCredits(*price))).collect(),
        ..machine("m", 9, 9)
    };
    for (list, chosen) in [
        (&[][..], "llm:a llm:b tts:c"),
        (&[("llm", 100_000)][..], "llm:a llm:b tts:c"),
        (&[("llm", 200_000)][..], "llm:b tts:c"),
        (&[("llm", 200_000), ("a", 50_000)][..], "llm:a llm:b tts:c"),
        (&[("llm:b", 300_001), ("tts", 1)][..], "llm:a"),
    ] {
        assert_eq!(names(&alone(&needs, &least(list))).join(" "), chosen, "{list:?}");
    }
    let offer = least(&[("llm", 200_000)]);
    let why = explained(&needs, &offer, NOW);
    assert_eq!(
        why["llm:a"].to_string(),
        "costs 0.100000 credits per million units, less than the owner's services.least_price of 0.200000"
    );
    assert_eq!(why["llm:a"].name(), "below_least_price");
    // What runs ends when its owner changes his mind.
    let runs = after(&least(&[]), &alone(&needs, &least(&[])), true, &needs);
    let now = Offer { least_prices: offer.least_prices, ..runs };
    assert_eq!(names(&alone(&needs, &now)), ["llm:b", "tts:c"]);
}

/// NR37: what ran out of memory is not planned into the same room again.
#[test]
fn a_service_that_ran_out_of_memory_is_planned_with_more_or_not_at_all() {
    let needs = [need("llm:a", 4, 0), need("llm:b", 1, 0)];
    let offer = machine("m", 6, 0);
    let before = alone(&needs, &offer);
    let claim = before.services[0].claim.memory;
    assert_eq!((names(&before), claim), (vec!["llm:a", "llm:b"], Bytes(4 * GIB)));
    let learned = |memory| Offer {
        floors: vec![Floor { service: "llm:a".parse().unwrap(), memory }],
        ..after(&offer, &before, true, &needs)
    };
    let more = alone(&needs, &learned(raised(claim)));
    assert_eq!((names(&more), more.services[0].claim.memory), (vec!["llm:a", "llm:b"], Bytes(5 * GIB)));
    let most = raised(raised(raised(claim)));
    let never = alone(&needs, &learned(most));
    assert_eq!(names(&never), ["llm:b"], "it would need {most} of 6 GiB");
    let why = explained(&needs, &learned(most), NOW)["llm:a"].to_string();
    assert!(
        why.starts_with("needs 7.8 GiB of memory, because with less it ran out of memory here;"),
        "{why}"
    );
    let elsewhere = machine("other", 6, 0);
    assert_eq!(names(&alone(&needs, &elsewhere)), ["llm:a", "llm:b"], "other machines learn nothing from it");
    let small = Offer { floors: learned(Bytes(1)).floors, ..offer.clone() };
    assert_eq!(alone(&needs, &small), before, "a floor below the need changes nothing");
}

#[test]
fn memory_of_accelerators_is_not_memory_of_the_machine() {
    let needs = [large("llm:a", 6), need("llm:b", 6, 0)];
    assert_eq!(names(&alone(&needs, &machine("m", 64, 9))), ["llm:b"]);
    assert_eq!(names(&alone(&needs, &with_gpus(machine("m", 1, 9), &[8]))), ["llm:a"]);
    let both = Need { memory: Bytes(2 * GIB), cpu_memory: Some(Bytes(9 * GIB)), ..large("llm:c", 6) };
    let needs = [both];
    let on_gpu = alone(&needs, &with_gpus(machine("m", 4, 9), &[8]));
    assert_eq!((on_gpu.services[0].claim.gpus.len(), on_gpu.services[0].claim.memory), (1, Bytes(2 * GIB)));
    let on_cpu = alone(&needs, &machine("m", 9, 9));
    assert_eq!((on_cpu.services[0].claim.gpus.len(), on_cpu.services[0].claim.memory), (0, Bytes(9 * GIB)));
    assert!(alone(&needs, &machine("m", 8, 9)).services.is_empty());
}

#[test]
fn a_model_takes_the_smallest_accelerator_that_holds_it_or_several() {
    let offer = with_gpus(machine("m", 9, 9), &[24, 8]);
    let one = alone(&[large("llm:a", 6)], &offer);
    assert_eq!(one.services[0].claim.gpus, [GpuClaim { index: 1, memory: Bytes(6 * GIB) }]);
    let two = alone(&[large("llm:a", 30)], &offer);
    let parts: Vec<(u32, u64)> =
        two.services[0].claim.gpus.iter().map(|part| (part.index, part.memory.0 / GIB)).collect();
    assert_eq!(parts, [(0, 24), (1, 6)]);
    assert!(alone(&[large("llm:a", 33)], &offer).services.is_empty());
}

#[test]
fn what_the_owner_does_not_want_is_left_out() {
    let needs = [need("llm:a", 1, 0), need("llm:b", 1, 0), need("tts:c", 1, 0), need("stt:d", 1, 0)];
    let offer = machine("m", 9, 9);
    let denying = |deny: &[&str], allow: &[&str]| {
        let text = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let offer = Offer { deny: text(deny), allow: text(allow), ..offer.clone() };
        names(&alone(&needs, &offer)).join(" ")
    };
    assert_eq!(denying(&["llm:b"], &[]), "llm:a tts:c stt:d");
    assert_eq!(denying(&["b", "stt"], &[]), "llm:a tts:c");
    assert_eq!(denying(&["a"], &["llm"]), "llm:b");
    let mut unwanted = needs.clone();
    unwanted[0].target = 0;
    assert_eq!(names(&alone(&unwanted, &offer)), ["llm:b", "tts:c", "stt:d"]);
}

#[test]
fn a_node_gets_only_what_its_engines_can_run_and_hold() {
    let library = Need { engines: vec![Engine::Ollama, Engine::External], ..need("llm:m:1b", 1, 1) };
    let library = Need { delivery: Delivery::Library, names: vec!["m:1b".into(), "org/m".into()], ..library };
    let program =
        Need { engines: vec![Engine::EspeakNg], delivery: Delivery::Program, ..need("tts:e", 1, 0) };
    let needs = [library, program, need("llm:a", 1, 0)];
    let having = |engines: &[(Engine, &str)], downloads: bool| {
        let engines = engines.iter().map(|(engine, model)| (*engine, vec![(*model).to_owned()])).collect();
        let offer = Offer { engines, ..machine("m", 9, 9) };
        let plan = plan(&needs, &[offer], &HashMap::new(), downloads, NOW).remove(0);
        names(&plan).join(" ")
    };
    assert_eq!(having(&[], false), "llm:a", "the built-in engine is always there");
    assert_eq!(having(&[(Engine::EspeakNg, "")], false), "tts:e llm:a");
    assert_eq!(having(&[(Engine::Ollama, "other")], false), "llm:a");
    assert_eq!(having(&[(Engine::Ollama, "m:1b")], false), "llm:m:1b llm:a");
    assert_eq!(having(&[(Engine::Ollama, "other")], true), "llm:m:1b llm:a");
    assert_eq!(having(&[(Engine::External, "other")], true), "llm:a", "nobody sends it a model");
    assert_eq!(having(&[(Engine::External, "llm:m:1b")], false), "llm:m:1b llm:a");
    assert_eq!(having(&[(Engine::Vllm, "org/m")], true), "llm:a", "the entry does not name this engine");
}

#[test]
fn many_small_machines_share_the_work_and_what_is_asked_for_comes_first() {
    let needs = [need("llm:a", 2, 0), need("llm:b", 2, 0), need("llm:c", 2, 0)];
    let fleet: Vec<Offer> = (0..30).map(|n| machine(&format!("m{n:02}"), 2, 9)).collect();
    let count = |demand: &HashMap<ServiceId, Demand>| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for plan in plan(&needs, &fleet, demand, false, NOW) {
            assert_eq!(plan.services.len(), 1);
            *counts.entry(plan.services[0].service.to_string()).or_default() += 1;
        }
        counts.into_values().collect::<Vec<_>>()
    };
    assert_eq!(count(&HashMap::new()), [10, 10, 10]);
    let demand = HashMap::from([(needs[1].service.clone(), Demand { refused: 64, ..Demand::default() })]);
    let counts = count(&demand);
    assert!(counts[1] >= 20 && counts[0] >= 3 && counts[2] >= 3, "{counts:?}");
}

#[test]
fn one_owner_and_one_region_do_not_get_all_of_a_service() {
    let needs = [need("llm:a", 2, 0), need("llm:b", 2, 0)];
    // Two owners with four machines each; the plan reaches them one owner after the other.
    let fleet: Vec<Offer> = (0..8)
        .map(|n| Offer {
            owner: UserId::from_tail(if n < 4 { "anna" } else { "ben" }),
            region: Some(if n % 2 == 0 { "DE" } else { "FR" }.to_owned()),
            ..machine(&format!("m{n}"), 2, 9)
        })
        .collect();
    let plans = plan(&needs, &fleet, &HashMap::new(), false, NOW);
    for key in [|offer: &Offer| offer.owner.to_string(), |offer: &Offer| offer.region.clone().unwrap()] {
        let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
        for (offer, plan) in fleet.iter().zip(&plans) {
            *counts.entry((key(offer), names(plan)[0].to_owned())).or_default() += 1;
        }
        assert_eq!(counts.into_values().collect::<Vec<_>>(), [2, 2, 2, 2]);
    }
    // With an uneven supply, the second machine of an owner takes what the owner does not serve yet.
    let mut needs = needs.to_vec();
    needs[0].target = 10;
    let same = |name: &str| Offer { owner: UserId::from_tail("anna"), ..machine(name, 2, 9) };
    let plans = plan(&needs, &[same("m1"), same("m2")], &HashMap::new(), false, NOW);
    assert_eq!((names(&plans[0]), names(&plans[1])), (vec!["llm:a"], vec!["llm:b"]));
}

#[test]
fn what_runs_stays_for_its_time_and_gives_way_only_to_much_more() {
    let needs = [need("llm:a", 2, 0), need("llm:b", 2, 0)];
    let offer = machine("m", 2, 9);
    let first = alone(&needs, &offer);
    assert_eq!(names(&first), ["llm:a"]);
    let running = after(&offer, &first, true, &needs);
    let asked =
        |refused| HashMap::from([(needs[1].service.clone(), Demand { refused, ..Demand::default() })]);
    let again = |refused, minutes| {
        let plan = plan(&needs, std::slice::from_ref(&running), &asked(refused), false, later(minutes));
        names(&plan[0]).join(" ")
    };
    assert_eq!(again(1_000, 29), "llm:a", "not before its time");
    assert_eq!(again(1_000, 30), "llm:b");
    assert_eq!(again(15, 300), "llm:a", "not twice as much: 8 + 7.5 wanted provisions against 8");
    assert_eq!(again(16, 300), "llm:b");

    let mut board = Board::new(&needs, false);
    board.ask(&asked(1_000));
    let why: Vec<Verdict> =
        board.explain(&running, later(10), true).into_iter().map(|(_, why)| why).collect();
    assert_eq!(why[0].to_string(), "runs here for 10 min and stays; nobody else serves it");
    assert_eq!(why[1], Verdict::Waits { instead_of: vec![needs[0].service.clone()], minutes: 20 });
    assert_eq!(why[1].to_string(), "will replace llm:a in 20 min, when that has had its time");
    let why: Vec<Verdict> =
        board.explain(&running, later(40), true).into_iter().map(|(_, why)| why).collect();
    assert_eq!(why[0], Verdict::Replaced);
    assert!(matches!(&why[1], Verdict::Replaces { out, .. } if out[0] == needs[0].service), "{why:?}");
    assert!(!why[0].is_chosen() && why[1].is_chosen());
}

/// Only what makes room ends: neither services of the processor, nor small ones beside a large one that is enough.
#[test]
fn nothing_ends_for_a_room_that_it_does_not_give() {
    let mut needs =
        [need("tts:cpu", 1, 0), large("llm:small", 1), large("llm:big", 20), large("llm:new", 20)];
    for (need, target) in needs.iter_mut().zip([1, 2, 3, 90]) {
        need.target = target;
    }
    let offer = with_gpus(machine("m", 4, 9), &[21]);
    let running = after(&offer, &alone(&needs[..3], &offer), true, &needs);
    assert_eq!(running.running.len(), 3);
    let plan = plan(&needs, &[running], &HashMap::new(), false, later(60)).remove(0);
    assert_eq!(names(&plan), ["tts:cpu", "llm:small", "llm:new"]);
}

#[test]
fn only_some_of_a_fleet_change_at_once() {
    let needs = [need("llm:a", 2, 0), need("llm:b", 2, 0)];
    let fleet: Vec<Offer> = (0..40).map(|n| machine(&format!("m{n:02}"), 2, 9)).collect();
    let plans = plan(&needs[..1], &fleet, &HashMap::new(), false, NOW);
    let running: Vec<Offer> =
        fleet.iter().zip(&plans).map(|(offer, plan)| after(offer, plan, true, &needs)).collect();
    let plans = plan(&needs, &running, &HashMap::new(), false, later(60));
    let changed = running.iter().zip(&plans).filter(|(offer, plan)| !plan.is_of(&offer.running)).count();
    assert_eq!(changed, 40 / SWITCH_SHARE);
}

#[test]
fn models_on_the_disk_are_preferred_and_need_no_room_there() {
    let mut needs = [need("llm:a", 2, 5), need("llm:b", 2, 5)];
    for need in &mut needs {
        need.engines = vec![Engine::Ollama];
    }
    let here = vec![(Engine::Ollama, vec!["b:latest".to_owned()])];
    let offer = Offer { engines: here, ..machine("m", 2, 5) };
    assert_eq!(names(&alone(&needs, &offer)), ["llm:b"]);
    assert_eq!(names(&alone(&needs, &Offer { disk_free: Bytes(0), ..offer })), ["llm:b"]);
}

#[test]
fn a_machine_that_shrank_keeps_what_is_worth_most() {
    let mut needs = [need("llm:a", 2, 0), need("llm:b", 2, 0)];
    needs[1].target = 20;
    let offer = machine("m", 4, 9);
    let running = after(&offer, &alone(&needs, &offer), true, &needs);
    let smaller = Offer { memory: machine("m", 2, 9).memory, ..running };
    assert_eq!(names(&alone(&needs, &smaller)), ["llm:b"]);
}

#[test]
fn nobody_is_left_out_for_the_files_of_what_runs() {
    let needs = [need("llm:a", 1, 5), need("llm:b", 1, 5)];
    let mut offer = machine("m", 64, 1);
    offer.running =
        vec![Running { service: needs[1].service.clone(), since: NOW, gpus: Vec::new(), stored: false }];
    assert_eq!(names(&alone(&needs, &offer)), ["llm:b"]);
}

#[test]
fn each_reason_is_a_sentence_with_its_numbers() {
    let mut offer = with_gpus(machine("m", 4, 6), &[8]);
    offer.engines = vec![(Engine::Ollama, Vec::new())];
    offer.deny = vec!["llm:denied".to_owned()];
    let needs = [
        need("llm:chosen", 3, 1),
        Need { target: 0, ..need("llm:off", 1, 1) },
        need("llm:denied", 1, 1),
        Need { engines: vec![Engine::Vllm], ..need("llm:vllm", 1, 1) },
        Need { engines: vec![Engine::Ollama], delivery: Delivery::Library, ..need("llm:away", 1, 1) },
        large("llm:huge", 90),
        need("llm:wide", 9, 1),
        need("llm:long", 0, 9),
        Need { target: 1, ..need("llm:late", 2, 1) },
    ];
    let why = explained(&needs, &offer, NOW);
    let said: Vec<String> = why.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    assert_eq!(
        said,
        [
            "llm:away: ollama is here but does not hold the model, and nobody pins its files",
            "llm:chosen: worth 8.000: nobody else serves it, 8 wanted, nobody asked lately",
            "llm:denied: the owner's services.deny names it",
            "llm:huge: needs 90.0 GiB of accelerator memory; there are 8.0 GiB",
            "llm:late: needs 2.0 GiB of memory; 1.0 GiB are left beside what is worth at least its 1.000",
            "llm:long: needs 9.0 GiB of disk; there are 6.0 GiB",
            "llm:off: the catalogue wants none (target = 0)",
            "llm:vllm: no engine here runs it; one of vllm would",
            "llm:wide: needs 9.0 GiB of memory; there are 4.0 GiB",
        ]
    );
    let none = explained(&needs, &machine("m", 4, 6), NOW);
    assert_eq!(none["llm:huge"].to_string(), "needs an accelerator with 90.0 GiB; there is none");
}

/// Machines with 0, 8, 24 and 80 GB of accelerator memory, whose owners run Ollama and have the usual programs.
#[test]
fn the_shipped_catalogue_is_planned_for_machines_of_every_size() {
    let catalogue = Catalogue::shipped().unwrap();
    let needs: Vec<Need> = catalogue.entries().iter().map(|entry| Need::from(&**entry)).collect();
    let engines = [Engine::Ollama, Engine::EspeakNg, Engine::Tesseract].map(|engine| (engine, Vec::new()));
    let mut totals = Vec::new();
    for (vram, memory) in [(0, 16), (8, 32), (24, 64), (80, 256)] {
        let sizes: &[u64] = if vram == 0 { &[] } else { &[vram] };
        let offer = Offer { engines: engines.to_vec(), ..with_gpus(machine("m", memory, 500), sizes) };
        let plan = plan(&needs, std::slice::from_ref(&offer), &HashMap::new(), true, NOW).remove(0);
        assert_fits(&offer, &plan, &needs);
        let services: HashSet<&str> = names(&plan).into_iter().collect();
        for program in ["llm:cxm-tiny", "embeddings:all-minilm", "tts:espeak-ng", "vision:tesseract"] {
            assert!(services.contains(program), "{vram} GB: {program}");
        }
        assert!(!services.contains("scrape") && !services.contains("stt:pocketsphinx"));
        let used: u64 = plan.services.iter().flat_map(|one| &one.claim.gpus).map(|part| part.memory.0).sum();
        assert!(used <= vram * GIB && used * 10 >= vram * GIB * 9, "{vram} GB: {} used", used / GIB);
        let largest = plan.services.iter().flat_map(|one| &one.claim.gpus).map(|part| part.memory).max();
        totals.push(largest.unwrap_or_default().0 / GIB);
        let mut board = Board::new(&needs, true);
        board.put(&offer);
        let why = board.explain(&offer, NOW, true);
        assert_eq!(why.len(), needs.len(), "each service has its reason");
        assert!(why.iter().all(|(_, why)| (20..200).contains(&why.to_string().len())));
    }
    // The large machine does what only large ones can.
    assert!(totals[0] == 0 && totals[1] >= 6 && totals[2] >= 20 && totals[3] >= 50, "{totals:?}");
}

/// No machine is filled beyond what it has, nothing is there twice, everything may be there.
fn assert_fits(offer: &Offer, plan: &NodePlan, needs: &[Need]) {
    let need = |planned: &Planned| needs.iter().find(|need| need.service == planned.service).unwrap();
    let services: HashSet<&ServiceId> = plan.services.iter().map(|planned| &planned.service).collect();
    assert_eq!(services.len(), plan.services.len(), "never twice");
    assert!(plan.services.len() <= MOST_SERVICES);
    let memory: u64 = plan.services.iter().map(|planned| planned.claim.memory.0).sum();
    assert!(memory <= offer.memory.saturating_sub(MEMORY_RESERVE).0, "memory");
    for gpu in &offer.gpus {
        let parts = plan.services.iter().flat_map(|planned| &planned.claim.gpus);
        let used: u64 = parts.filter(|part| part.index == gpu.index).map(|part| part.memory.0).sum();
        assert!(used <= gpu.memory.saturating_sub(VRAM_RESERVE).0, "accelerator {}", gpu.index);
    }
    let mut disk = 0;
    for planned in &plan.services {
        let need = need(planned);
        let old = offer.running.iter().any(|old| old.service == planned.service);
        disk += if old { 0 } else { costs(offer, need) };
        let vram: u64 = planned.claim.gpus.iter().map(|part| part.memory.0).sum();
        match planned.claim.gpus.is_empty() {
            true => assert_eq!(Some(planned.claim.memory), need.cpu_memory),
            false => assert_eq!((vram, planned.claim.memory), (need.vram.0, need.memory)),
        }
        assert!(need.target > 0 && !offer.deny.iter().any(|name| name == need.service.as_str()));
    }
    assert!(disk <= offer.disk_free.saturating_sub(DISK_RESERVE).0, "disk");
}

prop_compose! {
    fn any_need()(
        vram in prop_oneof![Just(0_u64), 1_u64..90],
        memory in 0_u64..16,
        cpu in proptest::option::of(0_u64..24),
        disk in 0_u64..16,
        target in 0_u32..12,
        engine in 0_usize..3,
        library in any::<bool>(),
    ) -> Need {
        Need {
            vram: Bytes(vram * GIB),
            cpu_memory: if vram == 0 { Some(Bytes(memory * GIB)) } else { cpu.map(|cpu| Bytes(cpu * GIB)) },
            engines: vec![[Engine::Builtin, Engine::Ollama, Engine::Vllm][engine]],
            delivery: if library { Delivery::Library } else { Delivery::Pinned },
            target,
            ..need("llm:x", memory, disk)
        }
    }
}

prop_compose! {
    fn any_offer()(
        gpus in proptest::collection::vec(1_u64..90, 0..4),
        memory in 0_u64..128,
        disk in 0_u64..64,
        owner in 0_u8..4,
        region in proptest::option::of(0_u8..3),
        ollama in proptest::option::of(proptest::collection::vec(0_usize..16, 0..4)),
        deny in proptest::collection::vec(0_usize..16, 0..2),
    ) -> Offer {
        let mut offer = with_gpus(machine("x", memory, disk), &gpus);
        offer.owner = UserId::from_tail(&format!("owner{owner}"));
        offer.region = region.map(|region| format!("R{region}"));
        offer.engines = ollama.into_iter()
            .map(|models| (Engine::Ollama, models.iter().map(|n| format!("m{n}")).collect()))
            .collect();
        offer.deny = deny.iter().map(|n| format!("llm:m{n}")).collect();
        offer
    }
}

prop_compose! {
    fn any_world()(
        needs in proptest::collection::vec(any_need(), 0..16),
        offers in proptest::collection::vec(any_offer(), 1..12),
        demand in proptest::collection::vec((0_usize..16, 0_u64..200, 0_u64..50, 0_u64..20), 0..6),
        downloads in any::<bool>(),
    ) -> (Vec<Need>, Vec<Offer>, HashMap<ServiceId, Demand>, bool) {
        let needs: Vec<Need> = needs.into_iter().enumerate()
            .map(|(n, need)| Need {
                service: format!("llm:m{n}").parse().unwrap(), names: vec![format!("m{n}")], ..need
            })
            .collect();
        let offers = offers.into_iter().enumerate()
            .map(|(n, offer)| Offer { provision: ProvisionId::from_tail(&format!("p{n}")), ..offer })
            .collect();
        let demand = demand.into_iter()
            .map(|(n, requests, queued, refused)| {
                (format!("llm:m{n}").parse().unwrap(), Demand { requests, queued, refused, units: 0 })
            })
            .collect();
        (needs, offers, demand, downloads)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_plan_fits_is_complete_stable_and_explained(
        (needs, offers, demand, downloads) in any_world(),
        stored in any::<bool>(),
        minutes in 0_i64..29,
    ) {
        let first = plan(&needs, &offers, &demand, downloads, NOW);
        prop_assert_eq!(first.len(), offers.len());
        prop_assert_eq!(&first, &plan(&needs, &offers, &demand, downloads, NOW), "the same twice");
        for (offer, plan) in offers.iter().zip(&first) {
            prop_assert_eq!(&offer.provision, &plan.provision);
            assert_fits(offer, plan, &needs);
        }
        // A moment later, whether or not the files have arrived, nothing changes: neither services nor places.
        let running: Vec<Offer> = offers.iter().zip(&first)
            .map(|(offer, plan)| after(offer, plan, stored, &needs)).collect();
        let second = plan(&needs, &running, &demand, downloads, later(minutes));
        prop_assert_eq!(&second, &first, "what runs stays");
        // Each reason agrees with the plan, and nothing that is left out for room would have fitted.
        let mut board = Board::new(&needs, downloads);
        board.ask(&demand);
        for offer in &running {
            board.put(offer);
        }
        for (offer, plan) in running.iter().zip(&second) {
            let why = board.explain(offer, later(minutes), true);
            prop_assert_eq!(why.len(), needs.len());
            for (service, why) in why {
                let planned = plan.services.iter().any(|planned| planned.service == service);
                prop_assert_eq!(planned, why.is_chosen(), "{}: {}", service, why);
                if let Verdict::NoRoom { needs, left, .. } = &why {
                    prop_assert!(needs > left, "{}: {}", service, why);
                }
                if let Verdict::TooLarge { needs, has, .. } = &why {
                    prop_assert!(needs > has, "{}: {}", service, why);
                }
            }
        }
    }

    /// Demand that moves lets plans move, and demand that stands still lets them come to rest.
    #[test]
    fn plans_come_to_rest((needs, offers, demand, downloads) in any_world()) {
        let mut running = offers;
        let mut at = 0;
        // What nobody asked for yet, then what is asked for.
        for plan in plan(&needs, &running.clone(), &HashMap::new(), downloads, NOW).iter().zip(running.iter_mut()) {
            *plan.1 = after(plan.1, plan.0, true, &needs);
        }
        for round in 0.. {
            prop_assert!(round < 500, "it never rests");
            at += 31;
            let plans = plan(&needs, &running, &demand, downloads, later(at));
            let mut moved = false;
            for (offer, plan) in running.iter_mut().zip(&plans) {
                assert_fits(offer, plan, &needs);
                moved |= !plan.is_of(&offer.running);
                *offer = after(offer, plan, true, &needs);
            }
            if !moved {
                break;
            }
        }
    }
}
