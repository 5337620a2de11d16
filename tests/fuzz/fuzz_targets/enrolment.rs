//! libFuzzer's way into `outrigger_fuzz::enrolment`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    outrigger_fuzz::enrolment::check(data);
});
