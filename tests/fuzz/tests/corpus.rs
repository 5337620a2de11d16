//! Every stored input, without a fuzzer: what was found once is looked for in every test run.
#![allow(clippy::unwrap_used)]

use std::path::Path;

#[test]
fn every_stored_input_keeps_the_invariants() {
    for (name, check) in outrigger_fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let files: Vec<_> = folder.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
        assert!(!files.is_empty(), "{name} has no stored inputs");
        let mut accepted = 0;
        for file in &files {
            println!("{}", file.display());
            accepted += usize::from(check(&std::fs::read(file).unwrap()));
        }
        // What is always refused, or never, shows nothing.
        assert!((1..files.len()).contains(&accepted), "{name}: {accepted} of {} accepted", files.len());
    }
}
