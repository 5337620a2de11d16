//! libFuzzer's way into `outrigger_fuzz::certificates`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    outrigger_fuzz::certificates::check(data);
});
