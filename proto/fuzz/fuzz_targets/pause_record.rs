#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wherry_proto::hostile::pause_record(bytes));
