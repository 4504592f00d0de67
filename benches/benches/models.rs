//! What seeing costs: decoding, features, one row of a forest, a whole assessment, training.
//!
//! `cargo bench -p gaitway-benches --bench models`; figures and targets are in docs/models.md.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gaitway_models::forest::{Forest, Slots};
use gaitway_models::sim::{BotKind, Visitor};
use gaitway_models::train::forest::ForestParams;
use gaitway_models::{Batch, DEFAULT_MODEL, Detector, Session, Timestamp};
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

criterion_group!(benches, stream, judge, forest);
criterion_main!(benches);
