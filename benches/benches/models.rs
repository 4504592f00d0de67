//! What seeing costs: decoding, features, one row of a forest, a whole assessment, training, and knowing a
//! person's hand.
//!
//! `cargo bench -p gaitway-benches --bench models`; figures and targets are in docs/models.md.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gaitway_models::artifact::Artifact;
use gaitway_models::doubt::LESSON_BLOCKS_MAX;
use gaitway_models::forest::{Forest, Slots};
use gaitway_models::hand::{self, Hand, HandTracker};
use gaitway_models::owner::{Background, Owners};
use gaitway_models::population::Device;
use gaitway_models::profile::{BLOCKS_MAX, Ending};
use gaitway_models::sim::{BotKind, Visitor};
use gaitway_models::train::forest::ForestParams;
use gaitway_models::{Batch, DEFAULT_MODEL, Detector, Profile, Session, Timestamp};
use linfa::DatasetBase;
use linfa::traits::Fit;
use ndarray::{Array1, Array2};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::hint::black_box;

/// Two minutes of a person in two-second batches.
fn batches() -> Vec<Batch> {
    let mut visitor = Visitor::person(7);
    (0..60).map(|_| visitor.next_batch(2.0)).collect()
}

fn stream(c: &mut Criterion) {
    let batches = batches();
    let events: usize = batches.iter().map(|batch| batch.events.len()).sum();
    let frames: Vec<Vec<u8>> = batches.iter().map(Batch::encode).collect();
    let mut group = c.benchmark_group("stream");
    group.throughput(Throughput::Elements(events as u64));
    group.bench_function("decode", |b| {
        b.iter(|| frames.iter().filter(|frame| Batch::decode(black_box(frame)).is_ok()).count());
    });
    group.bench_function("observe", |b| {
        b.iter_batched_ref(
            || Session::new(Timestamp(0)),
            |session| {
                for (i, batch) in batches.iter().enumerate() {
                    session.observe(Timestamp(2000 * i as u64), 1, black_box(batch));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn judge(c: &mut Criterion) {
    let Ok(detector) = Detector::load(DEFAULT_MODEL) else { return };
    let mut full = Session::new(Timestamp(0));
    let mut visitor = Visitor::bot(BotKind::LinearEven, 3);
    for i in 0..20 {
        full.observe(Timestamp(2000 * i), 1, &visitor.next_batch(2.0));
    }
    // The latest window alone, as after a usual batch.
    let Some(window) = full.clone().take_windows().last() else { return };
    c.bench_function("judge/window, all experts", |b| {
        b.iter(|| detector.window_log_ratio(black_box(&window)))
    });
    c.bench_function("judge/assess, three windows pending, with reasons", |b| {
        b.iter_batched_ref(
            || full.clone(),
            |session| detector.assess(Timestamp(40_000), session),
            BatchSize::SmallInput,
        );
    });
    c.bench_function("judge/load model", |b| b.iter(|| Detector::load(black_box(DEFAULT_MODEL))));
}

/// A person's hand against 84 others: time, and memory of sessions that know their person.
fn owner(c: &mut Criterion) {
    let people: Vec<Vec<Hand>> = (0..84).map(|seed| blocks(seed, 150)).collect();
    let Some(background) = Background::fit(&people) else { return };
    let owners = Owners::uncalibrated(background, people.len());
    let Ok(base) = Artifact::decode(DEFAULT_MODEL) else { return };
    let Ok(detector) = Detector::load(&Artifact { owners: Some(owners.clone()), ..base }.encode()) else {
        return;
    };
    let own = blocks(200, 2_500);
    assert!(own.len() >= BLOCKS_MAX);
    let knows = |ratios: &[u32]| {
        let mut profile = Profile::default();
        for ratio in ratios {
            let device = device(*ratio);
            let lesson: Vec<(Device, Hand)> = own.iter().map(|block| (device, block.clone())).collect();
            profile.learn(&owners, &lesson, Ending::default());
        }
        profile
    };
    let full = knows(&[100]);
    assert_eq!(full.blocks(), BLOCKS_MAX);
    let Some(known) = full.owner(&owners, 0) else { return };
    c.bench_function("owner/enrol by 96 blocks", |b| b.iter(|| black_box(&full).owner(&owners, 0)));
    c.bench_function("owner/judge a block", |b| b.iter(|| owners.log_ratio(&known, black_box(&own[0]))));
    let session: Vec<(Device, Hand)> =
        own.iter().take(LESSON_BLOCKS_MAX).map(|block| (device(100), block.clone())).collect();
    c.bench_function("owner/learn from a session of 48 blocks", |b| {
        b.iter_batched_ref(
            || full.clone(),
            |profile| profile.learn(&owners, &session, Ending::default()),
            BatchSize::SmallInput,
        );
    });
    for ratios in [&[100][..], &[100, 150, 200, 300]] {
        let mut session = Session::new(Timestamp(0));
        session.set_profile(knows(ratios));
        let mut visitor = Visitor::person(200);
        let environment = visitor.next_batch(2.0).environment;
        let mut sequence = 0;
        // Every device met, and as many blocks as are held to learn from.
        for ratio in ratios {
            let (mut tracker, mut blocks) = (HandTracker::default(), 0);
            while blocks < LESSON_BLOCKS_MAX / ratios.len() {
                let mut batch = Batch { environment, sequence, ..visitor.next_batch(2.0) };
                if let Some(environment) = &mut batch.environment {
                    environment.pixel_ratio_percent = *ratio;
                }
                blocks += batch.events.iter().filter_map(|event| tracker.observe(event)).count();
                let now = Timestamp(batch.sent_at_us / 1000);
                session.observe(now, 1, &batch);
                detector.assess(now, &mut session);
                sequence += 1;
            }
        }
        let bytes = knows(ratios).encode().len();
        println!(
            "a session that knows its person on {} device(s): {} KB, {} KB without; in the store {} KB",
            ratios.len(),
            kilobytes_each(&session),
            size_of::<Session>() / 1000,
            bytes / 1000
        );
    }
}

/// What a person moves in so many two-second batches.
fn blocks(seed: u64, batches: usize) -> Vec<Hand> {
    let mut visitor = Visitor::person(seed);
    hand::blocks(&(0..batches).flat_map(|_| visitor.next_batch(2.0).events).collect::<Vec<_>>())
}

fn device(pixel_ratio_percent: u32) -> Device {
    let told = Visitor::person(200).next_batch(2.0).environment;
    Device::of(
        told.map(|environment| gaitway_models::event::Environment { pixel_ratio_percent, ..environment }),
    )
}

/// Memory that one more such session takes of this process, by the second thousand: the first may lie in what
/// was free already.
fn kilobytes_each(session: &Session) -> usize {
    let thousand = || -> Vec<Box<Session>> { (0..1000).map(|_| Box::new(session.clone())).collect() };
    let first = thousand();
    let before = resident_kilobytes();
    let second = thousand();
    let taken = resident_kilobytes().saturating_sub(before);
    black_box(first);
    taken * 1024 / 1000 / black_box(second).len()
}

/// Of Linux; nought elsewhere.
fn resident_kilobytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// 100 trees of depth 12 on 40 features, the size the published figures are for.
fn forest(c: &mut Criterion) {
    let data = synthetic(15_000, 40);
    let params = ForestParams { trees: 100, depth_max: 12, seed: 1, ..ForestParams::default() };
    let Ok(trained) = params.fit(&data) else { return };
    let Ok(flat) = trained.flatten() else { return };
    let rows: Vec<Slots> = synthetic(512, 40)
        .records
        .rows()
        .into_iter()
        .map(|row| Slots::new(row.iter().map(|&x| x as f32)))
        .collect();
    println!("forest of {} trees, {} nodes", flat.trees(), flat.nodes());
    let mut group = c.benchmark_group("forest");
    let mut at = 0;
    group.bench_function("one row, 100 trees x depth 12 x 40", |b| {
        b.iter(|| {
            at = (at + 1) % rows.len();
            Forest::predict(&flat, black_box(&rows[at]))
        });
    });
    group.sample_size(10);
    group.bench_function("train 15k x 40, 100 trees, one core", |b| {
        b.iter(|| params.fit(black_box(&data)).is_ok())
    });
    group.finish();
}

/// Twelve informative columns of forty, 3 % of labels flipped.
fn synthetic(rows: usize, features: usize) -> DatasetBase<Array2<f64>, Array1<bool>> {
    let mut rng = ChaCha8Rng::seed_from_u64(rows as u64);
    let records = Array2::from_shape_fn((rows, features), |_| f64::from(rng.random_range(-1.0f32..1.0)));
    let targets = Array1::from_shape_fn(rows, |i| {
        let score: f64 = (0..6).map(|k| records[(i, 2 * k)] * records[(i, 2 * k + 1)]).sum();
        (score > 0.0) ^ rng.random_bool(0.03)
    });
    DatasetBase::new(records, targets)
}

criterion_group!(benches, stream, judge, owner, forest);
criterion_main!(benches);
