#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| meshfed_fuzz::exchange::client(data));
