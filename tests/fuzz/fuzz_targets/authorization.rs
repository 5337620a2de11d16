//! libFuzzer's way into `outrigger_fuzz::authorization`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    outrigger_fuzz::authorization::check(data);
});
