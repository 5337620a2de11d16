//! Panics twice, for `bare-root.sh`: whether a binary that is linked as ours is unwinds.

#![allow(clippy::panic, clippy::print_stderr)]

fn main() {
    let first = std::panic::catch_unwind(|| panic!("the first"));
    if first.is_err() {
        eprintln!("the first was caught");
    }
    panic!("the second");
}
