//! Real servers for tests: started on ports of their own, gone when dropped.

use std::{net::TcpListener, path::PathBuf};

pub mod etcd;
pub mod postgres;

/// A program on the PATH. Without it the test is skipped, and says so; with `PARALLAX_TEST_REQUIRE` it fails.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    if found.is_none() {
        let message = format!("there is no {name}; `make tools` installs it");
        assert!(std::env::var_os("PARALLAX_TEST_REQUIRE").is_none(), "{message}");
        println!("SKIPPED: {message}");
    }
    found
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("bound").port()
}
