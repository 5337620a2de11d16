//! The command line: `run`, `check`.
fn main() {}
