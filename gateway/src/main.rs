//! The binary: what must happen before anything else, then the command.

use std::process::ExitCode;

/// The proxy allocates from many threads at once; with mimalloc a request costs less CPU.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Two TLS providers may be linked by what we depend on; rustls panics unless one is chosen.
    // It only fails where one is chosen already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    gaitway::cli::main()
}
