//! The demo's binary: one command a part, and without a command all of them together.

mod shop;

fn main() {}
