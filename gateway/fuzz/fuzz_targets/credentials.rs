#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wherry_gateway::hostile::credentials(bytes));
