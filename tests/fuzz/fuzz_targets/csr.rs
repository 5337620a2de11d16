//! libFuzzer's way into `outrigger_fuzz::csr`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    outrigger_fuzz::csr::check(data);
});
