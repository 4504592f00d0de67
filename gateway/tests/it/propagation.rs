//! How long a revocation takes from the decision on one replica to its refusal on the last of three, through a
//! real Redis on loopback. `make bench-revocation` takes more of them and prints it.

use crate::servers::Redis;
use gaitway::clock;
use gaitway::config;
use gaitway::revocation::{Change, Revocation, Revocations, Scope};
use gaitway_policies::{Identity, SessionId};
use std::time::{Duration, Instant};

fn session(n: u32) -> SessionId {
    let mut bytes = [7; 16];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    SessionId(bytes)
}

fn visitor(n: u32) -> Identity {
    let (subject, token, expires_at, issued_at) = (None, None, None, None);
    Identity { session: session(n), subject, token, expires_at, issued_at, groups: Vec::new() }
}

/// Milliseconds of so many revocations, one every so often, sorted.
async fn measure(
    replicas: &[std::sync::Arc<Revocations>; 3],
    first: u32,
    count: u32,
    every: Duration,
) -> Vec<f64> {
    let mut heard: Vec<_> = replicas[1..].iter().map(|replica| replica.subscribe()).collect();
    let mut latencies = Vec::new();
    for n in first..first + count {
        let decided_at = clock::now();
        let until = decided_at.plus(Duration::from_secs(600));
        let scope = Scope::Session(session(n));
        let begun = Instant::now();
        let incident = "G-1".to_owned();
        let decided = replicas[0].revoke(Revocation { scope, incident, decided_at, until });
        let learnt = async {
            for receiver in &mut heard {
                while !matches!(receiver.recv().await.unwrap(), Change::Revoked(one) if one.scope == scope) {}
            }
            begun.elapsed().as_secs_f64() * 1e3
        };
        let (decided, latency) = tokio::join!(decided, learnt);
        decided.unwrap();
        assert!(replicas.iter().all(|replica| replica.check(&visitor(n), clock::now()).is_some()));
        latencies.push(latency);
        tokio::time::sleep(every).await;
    }
    latencies.sort_by(f64::total_cmp);
    latencies
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_are_in_force_on_every_replica_as_soon_as_it_hears_of_them() {
    let count = std::env::var("REVOCATIONS").map_or(100, |text| text.parse().unwrap());
    let redis = Redis::start();
    let config = config::Revocation { redis: Some(redis.url()), ..config::Revocation::default() };
    let start = async || Revocations::start(&config, Vec::new()).await.unwrap();
    let replicas = [start().await, start().await, start().await];
    measure(&replicas, 0, 100, Duration::ZERO).await;
    println!("load {}", std::fs::read_to_string("/proc/loadavg").unwrap().trim());
    println!("| {count} revocations, one after | p50 ms | p99 ms | max ms |\n|---|---|---|---|");
    for (round, every) in [0, 1, 20].into_iter().enumerate() {
        let first = 100_000 * (u32::try_from(round).unwrap() + 1);
        let latencies = measure(&replicas, first, count, Duration::from_millis(every)).await;
        let quantile = |q: usize| latencies[(latencies.len() - 1) * q / 1000];
        let after = if every == 0 { "the other".to_owned() } else { format!("the other and {every} ms") };
        println!("| {after} | {:.2} | {:.2} | {:.2} |", quantile(500), quantile(990), quantile(1000));
    }
    println!("load {}", std::fs::read_to_string("/proc/loadavg").unwrap().trim());
}
