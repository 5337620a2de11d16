//! libFuzzer's way into `outrigger_fuzz::spiffe_id`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    outrigger_fuzz::spiffe_id::check(data);
});
