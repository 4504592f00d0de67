//! Commands that print, seen from the shell.

use std::process::Command;

#[test]
fn a_reader_that_has_gone_ends_a_command_in_peace() {
    let policies = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/default.yaml");
    let commands: [&[&str]; 6] = [
        &["model", "show"],
        &["model", "show", "--json"],
        &["model", "show", "--rules"],
        &["model", "features"],
        &["policy", "check", policies],
        &["help"],
    ];
    for command in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output =
            Command::new(env!("CARGO_BIN_EXE_gaitway")).args(command).stdout(writer).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && complaint.is_empty(),
            "{command:?}: {} {complaint}",
            output.status
        );
    }
}
