//! Our forest's side of `benches/learn/run.py`: trains, walks, times, and leaves the scores in files.
//!
//! `forest FOLDER` reads train.bin, test.bin (rows, columns, then rows of `f32` with the target last) and
//! theirs.forest (another trainer's trees in our flat layout), writes ours.scores and theirs.scores
//! (`f32`) and prints one line of JSON. Must not know: the rivals.

use anyhow::Context;
use gaitway_models::forest::{Forest, Slots};
use gaitway_models::train::forest::ForestParams;
use linfa::DatasetBase;
use linfa::traits::Fit;
use ndarray::{Array1, Array2};
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

const TREES: usize = 100;
const DEPTH: usize = 12;
/// Passes over all test rows; the fastest counts, for a shared machine only ever adds time.
const PASSES: usize = 15;
const TRAININGS: usize = 3;

struct Rows {
    columns: usize,
    values: Vec<f32>,
}

fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1).context("usage: forest FOLDER")?;
    let folder = Path::new(&folder);
    let (train, test) = (read(&folder.join("train.bin"))?, read(&folder.join("test.bin"))?);
    let data = dataset(&train);
    let params = ForestParams { trees: TREES, depth_max: DEPTH, seed: 1, ..ForestParams::default() };
    let mut seconds = f64::INFINITY;
    let mut grown = Vec::new();
    for _ in 0..TRAININGS {
        let start = Instant::now();
        let forest = params.fit(&data)?;
        seconds = seconds.min(start.elapsed().as_secs_f64());
        let mut bytes = Vec::new();
        forest.flatten()?.write(&mut bytes);
        grown.push(bytes);
    }
    let identical = grown.iter().all(|bytes| *bytes == grown[0]);
    let ours = Forest::read(&mut grown[0].as_slice())?;
    let theirs = std::fs::read(folder.join("theirs.forest")).context("cannot read theirs.forest")?;
    let theirs = Forest::read(&mut theirs.as_slice())?;
    let (ours_ns, theirs_ns) = (walk(&ours, &test), walk(&theirs, &test));
    write(&folder.join("ours.scores"), &ours, &test)?;
    write(&folder.join("theirs.scores"), &theirs, &test)?;
    println!(
        "{{\"train_s\":{seconds},\"identical\":{identical},\"nodes\":{},\"row_ns\":{ours_ns},\"their_nodes\":{},\"their_row_ns\":{theirs_ns}}}",
        ours.nodes(),
        theirs.nodes()
    );
    Ok(())
}

/// Nanoseconds a row, one row at a time, from its values to its score.
fn walk(forest: &Forest, rows: &Rows) -> f64 {
    let n = rows.values.len() / rows.columns;
    let pass = |_| {
        let start = Instant::now();
        for row in rows.values.chunks_exact(rows.columns) {
            let features = row[..rows.columns - 1].iter().copied();
            black_box(forest.predict(black_box(&Slots::new(features))));
        }
        start.elapsed().as_secs_f64() * 1e9 / n as f64
    };
    (0..PASSES).map(pass).fold(f64::INFINITY, f64::min)
}

fn write(path: &Path, forest: &Forest, rows: &Rows) -> anyhow::Result<()> {
    let score = |row: &[f32]| forest.predict(&Slots::new(row[..rows.columns - 1].iter().copied()));
    let scores = rows.values.chunks_exact(rows.columns).flat_map(|row| score(row).to_le_bytes());
    std::fs::write(path, scores.collect::<Vec<u8>>())
        .with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Rows> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let words: Vec<[u8; 4]> = bytes.chunks_exact(4).filter_map(|word| word.try_into().ok()).collect();
    let [rows, columns] = [0, 1].map(|i| words.get(i).map_or(0, |&word| u32::from_le_bytes(word) as usize));
    anyhow::ensure!(
        columns > 1 && words.len() == 2 + rows * columns,
        "{}: not rows of numbers",
        path.display()
    );
    Ok(Rows { columns, values: words[2..].iter().map(|&word| f32::from_le_bytes(word)).collect() })
}

fn dataset(rows: &Rows) -> DatasetBase<Array2<f64>, Array1<bool>> {
    let (columns, n) = (rows.columns, rows.values.len() / rows.columns);
    let records = Array2::from_shape_fn((n, columns - 1), |(i, j)| f64::from(rows.values[i * columns + j]));
    let targets = Array1::from_shape_fn(n, |i| rows.values[(i + 1) * columns - 1] > 0.5);
    DatasetBase::new(records, targets)
}
