//! Measures the back-test: a million session-minutes, six lines a minute, through one policy.
//!
//! `cargo run --release -p gaitway-policies --example backtest_load [SESSION_MINUTES]`

#![allow(clippy::print_stderr)]

use gaitway_policies::PolicySet;
use gaitway_policies::backtest::Replay;
use gaitway_policies::record::{HEADER, Recording};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

const MINUTES: u64 = 50;
const LINES_A_MINUTE: u64 = 6;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let session_minutes: u64 = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let sessions = session_minutes.div_ceil(MINUTES);
    let policies =
        PolicySet::parse("demo.yaml", gaitway_policies::DEMO).map_err(|mistakes| format!("{mistakes:?}"))?;
    let mut recording = Recording::new();
    let mut replay = Replay::new(Arc::new(policies));
    recording.read(HEADER)?;
    let started = Instant::now();
    let (mut line, mut lines, mut bytes) = (String::new(), 0_u64, 0);
    for step in 0..MINUTES * LINES_A_MINUTE {
        for session in 0..sessions {
            line.clear();
            let at = 1_800_000_000_000 + step * 60_000 / LINES_A_MINUTE;
            // Every fiftieth session drifts up to the threshold; the others stay below it.
            let evidence = if session % 50 == 0 { step as f64 / 20.0 } else { (step % 7) as f64 };
            write!(
                line,
                r#"{{"session":"s_{session:032x}","at":{at},"facts":{{"bot.evidence":{evidence},"bot.score":0.25,"evidence.seconds":{}"#,
                step * 4
            )?;
            line.push_str(if step == 0 {
                r#","bot.threshold":8,"telemetry.state":"sufficient","modality":"mouse"}}"#
            } else {
                "}}"
            });
            if let Some(recorded) = recording.read(&line)? {
                replay.observe(recorded);
            }
            lines += 1;
            bytes += line.len();
        }
    }
    let outcome = replay.finish(&recording);
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{:.0} session-minutes, {lines} lines, {} MB in {seconds:.1} s: {:.0} lines a second; {} of {} sessions out",
        outcome.session_minutes,
        bytes / 1_000_000,
        lines as f64 / seconds,
        outcome.out.len(),
        outcome.sessions
    );
    Ok(())
}
