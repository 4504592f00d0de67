//! Real Sentinels and a real Cluster whose master is killed under the replicas' feet.

use super::tests::{DURABLE, Redis, is_refused, of_session, until, until_connected, until_refused};
use super::*;
use crate::config;
use std::process::Command;

/// New replicas are served at once instead of after five seconds.
const REPLICATING: &[&str] = &["--repl-diskless-sync-delay", "0"];

/// Repeats as the outbox does, until the change is durable.
async fn revoke_until_durable(replica: &Revocations, n: u32) {
    let revocation = of_session(n);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while let Err(error) = replica.revoke(revocation.clone()).await {
        assert!(matches!(error, RevocationError::Unreachable), "{error}");
        assert!(tokio::time::Instant::now() < deadline, "revocation {n} never became durable");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn command(port: u16, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli")
        .args(["-p", &port.to_string()])
        .args(arguments)
        .output()
        .expect("redis-cli is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn replicas(address: String) -> [Arc<Revocations>; 3] {
    let config = config::Revocation { redis: Some(address), ..config::Revocation::default() };
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Revocations::start(&config, Vec::new()).await.unwrap());
    }
    replicas.try_into().ok().unwrap()
}

#[tokio::test]
async fn sentinels_lead_to_the_new_master() {
    let mut servers = Vec::new();
    for n in 0..3 {
        let master = servers.first().map(|master: &Redis| master.port.to_string());
        let mut arguments = [DURABLE, REPLICATING].concat();
        if let (true, Some(master)) = (n > 0, &master) {
            arguments.extend(["--replicaof", "127.0.0.1", master]);
        }
        servers.push(Redis::start(&arguments).await);
    }
    let mut sentinels = Vec::new();
    for _ in 0..3 {
        let mut sentinel = Redis::stopped(&["--sentinel"]);
        // Sentinels keep their state in their configuration file.
        let file = sentinel.directory.path().join("sentinel.conf");
        let text = format!(
            "sentinel monitor main 127.0.0.1 {} 2\nsentinel down-after-milliseconds main 300\n\
             sentinel failover-timeout main 10000\nsentinel parallel-syncs main 2\n",
            servers[0].port
        );
        std::fs::write(&file, text).unwrap();
        sentinel.file = Some(file);
        sentinel.boot().await;
        sentinels.push(sentinel);
    }
    let ask = |what: &str| command(sentinels[0].port, &["sentinel", what, "main"]);
    until("the Sentinels know each other and the replicas", || {
        let state = ask("master");
        let has = |field: &str, value: &str| state.contains(&format!("{field}\n{value}\n"));
        has("num-other-sentinels", "2") && has("num-slaves", "2")
    })
    .await;
    let nodes: Vec<String> =
        sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
    let replicas = replicas(format!("redis+sentinel://{}/main", nodes.join(","))).await;
    revoke_until_durable(&replicas[0], 0).await;
    for replica in &replicas {
        until_refused(replica, 0).await;
    }
    let master: u16 = ask("get-master-addr-by-name").lines().nth(1).unwrap().parse().unwrap();
    until("both replicas can take over", || {
        let followers = servers.iter().filter(|server| server.port != master);
        let is_linked =
            |server: &Redis| command(server.port, &["info", "replication"]).contains("master_link_status:up");
        followers.filter(|server| is_linked(server)).count() == 2
    })
    .await;
    servers.iter_mut().find(|server| server.port == master).unwrap().kill();
    revoke_until_durable(&replicas[1], 1).await;
    for replica in &replicas {
        until_connected(replica, true).await;
        until_refused(replica, 1).await;
        assert!((0..=1).all(|n| is_refused(replica, n)), "nothing is forgotten");
        assert!(!is_refused(replica, 100), "nobody else is logged out");
    }
}

#[tokio::test]
async fn a_cluster_is_followed_to_the_owner_of_the_slot() {
    let mut nodes = Vec::new();
    for _ in 0..6 {
        let cluster = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--cluster-config-file",
            "nodes.conf",
        ];
        nodes.push(Redis::start(&[DURABLE, REPLICATING, &cluster].concat()).await);
    }
    let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let mut create = vec!["--cluster", "create"];
    create.extend(addresses.iter().map(String::as_str));
    create.extend(["--cluster-replicas", "1", "--cluster-yes"]);
    let answer = command(nodes[0].port, &create);
    assert!(answer.contains("All 16384 slots covered"), "{answer}");
    until("every node sees the Cluster", || {
        nodes.iter().all(|node| command(node.port, &["cluster", "info"]).contains("cluster_state:ok"))
    })
    .await;
    until("each master's replica holds its data, as it could not take over otherwise", || {
        let is_linked =
            |node: &&Redis| command(node.port, &["info", "replication"]).contains("master_link_status:up");
        nodes.iter().filter(is_linked).count() == 3
    })
    .await;
    let replicas = replicas(format!("redis+cluster://{}", addresses.join(","))).await;
    revoke_until_durable(&replicas[0], 1).await;
    for replica in &replicas {
        until_refused(replica, 1).await;
    }
    let slot = command(nodes[0].port, &["cluster", "keyslot", "{gaitway:}revocations"]);
    let slots = command(nodes[0].port, &["cluster", "nodes"]);
    let owner = owner_of(slot.trim().parse().unwrap(), &slots);
    let killed = nodes.iter_mut().find(|node| node.port == owner).unwrap();
    killed.kill();
    revoke_until_durable(&replicas[1], 2).await;
    let late = Revocations::start(
        &config::Revocation {
            redis: Some(format!("redis+cluster://{}", addresses.join(","))),
            ..config::Revocation::default()
        },
        Vec::new(),
    )
    .await
    .unwrap();
    for replica in replicas.iter().chain([&late]) {
        until_connected(replica, true).await;
        until_refused(replica, 1).await;
        until_refused(replica, 2).await;
        assert!(!is_refused(replica, 3));
    }
}

/// Reads CLUSTER NODES: `id host:port@bus flags … first-last`.
fn owner_of(slot: u16, nodes: &str) -> u16 {
    let owns = |line: &&str| {
        line.split(' ').skip(8).any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else { return false };
            (first..=last).contains(&slot)
        })
    };
    let line = nodes.lines().find(owns).unwrap();
    let address = line.split(' ').nth(1).unwrap().split('@').next().unwrap();
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}
