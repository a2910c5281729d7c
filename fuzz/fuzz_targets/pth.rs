#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| attar_fuzz::pth(input));
